// Rotary positions in Llama's half-split order: number i of a head turns with number i + dim / 2.
// Source: Su et al., "RoFormer", arXiv 2104.09864, section 3.4.2.
#ifndef MEMO_KERNELS_ROPE_H_
#define MEMO_KERNELS_ROPE_H_

#include "kernels/packs.h"

namespace memo {

// x and y are [batch, heads, tokens, dim], cos and sin [batch, tokens, dim], with dim contiguous
// and 16-byte aligned halves; pitches are in packs, a table's batch pitch of 0 gives all one table.
template <typename T>
struct Rope {
  struct Pitches {
    size_t batch;
    size_t head;
    size_t token;
  };
  struct Angles {
    Pack<T> cos[2];
    Pack<T> sin[2];
  };
  const T* x;
  const T* cos;
  const T* sin;
  T* y;
  size_t batch;
  size_t heads;
  size_t tokens;
  size_t half_packs;
  Pitches x_pitches;
  Pitches y_pitches;
  size_t table_batch_pitch;
  size_t table_token_pitch;
  bool is_backward;
};

// An item is one pack of the first half and its partner, of one token, for all heads in turn.
template <typename T>
MEMO_HOST_DEVICE size_t NumItems(const Rope<T>& args) {
  return args.batch * args.tokens * args.half_packs;
}

template <typename T>
MEMO_HOST_DEVICE typename Rope<T>::Angles LoadAngles(const Rope<T>& args, size_t first) {
  typename Rope<T>::Angles angles;
  for (size_t half = 0; half < 2; ++half) {
    angles.cos[half] = LoadPack<Pack<T>>(args.cos, first + half * args.half_packs);
    angles.sin[half] = LoadPack<Pack<T>>(args.sin, first + half * args.half_packs);
  }
  return angles;
}

// Forward takes the sines crosswise with the result, backward (the transpose) with the input.
template <typename T>
MEMO_HOST_DEVICE void Rotate(Pack<T> (&pair)[2], const typename Rope<T>::Angles& angles,
                             bool is_backward) {
  for (size_t e = 0; e < Pack<T>::kElements; ++e) {
    const float first = ToFloat(pair[0].values[e]);
    const float second = ToFloat(pair[1].values[e]);
    const float sins[2] = {ToFloat(angles.sin[0].values[e]), ToFloat(angles.sin[1].values[e])};
    const float to_first = is_backward ? sins[1] : -sins[0];
    const float to_second = is_backward ? -sins[0] : sins[1];
    pair[0].values[e] = FromFloat<T>(first * ToFloat(angles.cos[0].values[e]) + second * to_first);
    pair[1].values[e] = FromFloat<T>(second * ToFloat(angles.cos[1].values[e]) + first * to_second);
  }
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const Rope<T>& args, size_t item) {
  const size_t column = item % args.half_packs;
  const size_t token = item / args.half_packs % args.tokens;
  const size_t sequence = item / args.half_packs / args.tokens;
  const size_t angle = sequence * args.table_batch_pitch + token * args.table_token_pitch + column;
  const typename Rope<T>::Angles angles = LoadAngles(args, angle);
  size_t x = sequence * args.x_pitches.batch + token * args.x_pitches.token + column;
  size_t y = sequence * args.y_pitches.batch + token * args.y_pitches.token + column;
  MEMO_UNROLL_4
  for (size_t head = 0; head < args.heads; ++head) {
    Pack<T> pair[2] = {LoadPack<Pack<T>>(args.x, x),
                       LoadPack<Pack<T>>(args.x, x + args.half_packs)};
    Rotate(pair, angles, args.is_backward);
    StorePack(args.y, y, pair[0]);
    StorePack(args.y, y + args.half_packs, pair[1]);
    x += args.x_pitches.head;
    y += args.y_pitches.head;
  }
}

}  // namespace memo

#endif  // MEMO_KERNELS_ROPE_H_
