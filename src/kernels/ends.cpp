// Stem and head of a network.
#include "entry.h"
#include "head_operators.h"
#include "stem_operators.h"

SPNAS_OPERATOR(StemTrain, stem_train(call))
SPNAS_OPERATOR(StemBackward, stem_backward(call))
SPNAS_OPERATOR(StemInputGradient, stem_input_gradient(call))
SPNAS_OPERATOR(StemInfer, stem_infer(call, /*folded=*/false))
SPNAS_OPERATOR(StemFolded, stem_infer(call, /*folded=*/true))
SPNAS_OPERATOR(HeadTrain, head_train(call))
SPNAS_OPERATOR(HeadBackward, head_backward(call))
SPNAS_OPERATOR(HeadInfer, head_infer(call, /*folded=*/false))
SPNAS_OPERATOR(HeadFolded, head_infer(call, /*folded=*/true))
