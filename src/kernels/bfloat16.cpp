// Training in bfloat16: stem, blocks and head whose images and saved tensors are bfloat16. There is
// no inference, which is float.
#include "block_backward.h"
#include "block_forward.h"
#include "entry.h"
#include "head_operators.h"
#include "stem_operators.h"

SPNAS_OPERATOR(Bfloat16BlockTrain1, block_train<Bfloat16>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(Bfloat16BlockTrain2, block_train<Bfloat16>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(Bfloat16BlockPlainTrain1, block_train<Bfloat16>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(Bfloat16BlockPlainTrain2, block_train<Bfloat16>(call, /*expands=*/false, 2))
SPNAS_OPERATOR(Bfloat16BlockBackward1, block_backward<Bfloat16>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(Bfloat16BlockBackward2, block_backward<Bfloat16>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(Bfloat16BlockPlainBackward1, block_backward<Bfloat16>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(Bfloat16BlockPlainBackward2, block_backward<Bfloat16>(call, /*expands=*/false, 2))
SPNAS_OPERATOR(Bfloat16StemTrain1, stem_train<Bfloat16>(call, 1))
SPNAS_OPERATOR(Bfloat16StemTrain2, stem_train<Bfloat16>(call, 2))
SPNAS_OPERATOR(Bfloat16StemBackward1, stem_backward<Bfloat16>(call, 1))
SPNAS_OPERATOR(Bfloat16StemBackward2, stem_backward<Bfloat16>(call, 2))
SPNAS_OPERATOR(Bfloat16StemInputGradient1, stem_input_gradient<Bfloat16>(call, 1))
SPNAS_OPERATOR(Bfloat16StemInputGradient2, stem_input_gradient<Bfloat16>(call, 2))
SPNAS_OPERATOR(Bfloat16HeadTrain, head_train<Bfloat16>(call))
SPNAS_OPERATOR(Bfloat16HeadBackward, head_backward<Bfloat16>(call))
