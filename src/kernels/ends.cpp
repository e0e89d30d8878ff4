// Stem and head of a network.
#include "entry.h"
#include "head_operators.h"
#include "stem_operators.h"

SPNAS_OPERATOR(StemTrain1, stem_train<float>(call, 1))
SPNAS_OPERATOR(StemBackward1, stem_backward<float>(call, 1))
SPNAS_OPERATOR(StemInputGradient1, stem_input_gradient<float>(call, 1))
SPNAS_OPERATOR(StemInfer1, stem_infer(call, 1, /*folded=*/false))
SPNAS_OPERATOR(StemFolded1, stem_infer(call, 1, /*folded=*/true))
SPNAS_OPERATOR(StemTrain2, stem_train<float>(call, 2))
SPNAS_OPERATOR(StemBackward2, stem_backward<float>(call, 2))
SPNAS_OPERATOR(StemInputGradient2, stem_input_gradient<float>(call, 2))
SPNAS_OPERATOR(StemInfer2, stem_infer(call, 2, /*folded=*/false))
SPNAS_OPERATOR(StemFolded2, stem_infer(call, 2, /*folded=*/true))
SPNAS_OPERATOR(HeadTrain, head_train<float>(call))
SPNAS_OPERATOR(HeadBackward, head_backward<float>(call))
SPNAS_OPERATOR(HeadInfer, head_infer(call, /*folded=*/false))
SPNAS_OPERATOR(HeadFolded, head_infer(call, /*folded=*/true))
