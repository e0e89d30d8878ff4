// MBConv blocks, forward; plain ones have no expansion.
#include "block_operators.h"
#include "entry.h"

SPNAS_OPERATOR(BlockTrain1, block_train<float>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(BlockInfer1, block_infer(call, /*expands=*/true, 1, /*folded=*/false))
SPNAS_OPERATOR(BlockFolded1, block_infer(call, /*expands=*/true, 1, /*folded=*/true))
SPNAS_OPERATOR(BlockPlainTrain1, block_train<float>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(BlockPlainInfer1, block_infer(call, /*expands=*/false, 1, /*folded=*/false))
SPNAS_OPERATOR(BlockPlainFolded1, block_infer(call, /*expands=*/false, 1, /*folded=*/true))
SPNAS_OPERATOR(BlockTrain2, block_train<float>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(BlockInfer2, block_infer(call, /*expands=*/true, 2, /*folded=*/false))
SPNAS_OPERATOR(BlockFolded2, block_infer(call, /*expands=*/true, 2, /*folded=*/true))
SPNAS_OPERATOR(BlockPlainTrain2, block_train<float>(call, /*expands=*/false, 2))
SPNAS_OPERATOR(BlockPlainInfer2, block_infer(call, /*expands=*/false, 2, /*folded=*/false))
SPNAS_OPERATOR(BlockPlainFolded2, block_infer(call, /*expands=*/false, 2, /*folded=*/true))
