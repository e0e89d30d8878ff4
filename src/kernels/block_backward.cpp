// MBConv blocks, backward; plain ones have no expansion.
#include "block_backward.h"
#include "entry.h"

SPNAS_OPERATOR(BlockBackward1, block_backward<float>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(BlockPlainBackward1, block_backward<float>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(BlockBackward2, block_backward<float>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(BlockPlainBackward2, block_backward<float>(call, /*expands=*/false, 2))
