// MBConv blocks, backward.
#include "block_backward.h"
#include "entry.h"

SPNAS_OPERATOR(BlockBackward, block_backward(call, /*expands=*/true))
SPNAS_OPERATOR(BlockBackwardPlain, block_backward(call, /*expands=*/false))
