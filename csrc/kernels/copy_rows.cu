// Copies of rows, on the GPU.
#include "kernels/copy_rows.h"
#include "kernels/launch.h"

namespace memo {

template void RunItemsOnDevice(const CopyRows&, cudaStream_t);

}  // namespace memo
