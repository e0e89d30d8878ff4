// The update of a network's weights.
#include "entry.h"
#include "momentum_operators.h"

SPNAS_OPERATOR(MomentumStep, momentum_step(call))
