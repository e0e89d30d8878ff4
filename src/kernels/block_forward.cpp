// MBConv blocks, forward.
#include "block_operators.h"
#include "entry.h"

SPNAS_OPERATOR(BlockTrain, block_train(call, /*expands=*/true))
SPNAS_OPERATOR(BlockTrainPlain, block_train(call, /*expands=*/false))
SPNAS_OPERATOR(BlockInfer, block_infer(call, /*expands=*/true, /*folded=*/false))
SPNAS_OPERATOR(BlockInferPlain, block_infer(call, /*expands=*/false, /*folded=*/false))
SPNAS_OPERATOR(BlockFolded, block_infer(call, /*expands=*/true, /*folded=*/true))
SPNAS_OPERATOR(BlockFoldedPlain, block_infer(call, /*expands=*/false, /*folded=*/true))
