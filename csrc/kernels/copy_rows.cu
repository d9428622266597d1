// Copies of rows, on the GPU.
#include "kernels/launch.h"
#include "kernels/copy_rows.h"

namespace memo {

template void RunItemsOnDevice(const CopyRows&, cudaStream_t);

}  // namespace memo
