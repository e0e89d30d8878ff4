// Layers of one-shot supernets.
#include "choice_operators.h"
#include "entry.h"

SPNAS_OPERATOR(ChoiceTrain1, choice_train<float>(call, 1))
SPNAS_OPERATOR(ChoiceTrain2, choice_train<float>(call, 2))
SPNAS_OPERATOR(ChoiceInfer1, choice_infer<float>(call, 1))
SPNAS_OPERATOR(ChoiceInfer2, choice_infer<float>(call, 2))
SPNAS_OPERATOR(ChoiceBfloat16Train1, choice_train<Bfloat16>(call, 1))
SPNAS_OPERATOR(ChoiceBfloat16Train2, choice_train<Bfloat16>(call, 2))
SPNAS_OPERATOR(ChoiceBfloat16Infer1, choice_infer<Bfloat16>(call, 1))
SPNAS_OPERATOR(ChoiceBfloat16Infer2, choice_infer<Bfloat16>(call, 2))
SPNAS_OPERATOR(ChoiceBackward1, choice_backward(call, 1))
SPNAS_OPERATOR(ChoiceBackward2, choice_backward(call, 2))
SPNAS_OPERATOR(ChoiceMomentum, choice_momentum(call))
