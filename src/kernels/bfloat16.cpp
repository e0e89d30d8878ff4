// Training in bfloat16: stem, blocks and head whose images and saved tensors are bfloat16. There is
// no inference, which is float.
#include "block_backward.h"
#include "block_forward.h"
#include "entry.h"
#include "head_operators.h"
#include "stem_operators.h"
#include "tiles.h"

// Whether the processor that is compiled for multiplies bfloat16; others are many times as slow.
extern "C" __attribute__((visibility("default"))) int spnas_multiplies_bfloat16() {
  return SPNAS_BFLOAT16;
}

// Whether it also has matrix tiles, which the kernel lets this process use.
extern "C" __attribute__((visibility("default"))) int spnas_multiplies_by_tiles() {
#if SPNAS_TILES
  return spnas::tiles_allowed();
#else
  return 0;
#endif
}

SPNAS_OPERATOR(BlockBfloat16Train1, block_train<Bfloat16>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(BlockBfloat16Train2, block_train<Bfloat16>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(BlockPlainBfloat16Train1, block_train<Bfloat16>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(BlockPlainBfloat16Train2, block_train<Bfloat16>(call, /*expands=*/false, 2))
SPNAS_OPERATOR(BlockBfloat16Backward1, block_backward<Bfloat16>(call, /*expands=*/true, 1))
SPNAS_OPERATOR(BlockBfloat16Backward2, block_backward<Bfloat16>(call, /*expands=*/true, 2))
SPNAS_OPERATOR(BlockPlainBfloat16Backward1, block_backward<Bfloat16>(call, /*expands=*/false, 1))
SPNAS_OPERATOR(BlockPlainBfloat16Backward2, block_backward<Bfloat16>(call, /*expands=*/false, 2))
SPNAS_OPERATOR(StemBfloat16Train1, stem_train<Bfloat16>(call, 1))
SPNAS_OPERATOR(StemBfloat16Train2, stem_train<Bfloat16>(call, 2))
SPNAS_OPERATOR(StemBfloat16Backward1, stem_backward<Bfloat16>(call, 1))
SPNAS_OPERATOR(StemBfloat16Backward2, stem_backward<Bfloat16>(call, 2))
SPNAS_OPERATOR(StemBfloat16InputGradient1, stem_input_gradient<Bfloat16>(call, 1))
SPNAS_OPERATOR(StemBfloat16InputGradient2, stem_input_gradient<Bfloat16>(call, 2))
SPNAS_OPERATOR(HeadBfloat16Train, head_train<Bfloat16>(call))
SPNAS_OPERATOR(HeadBfloat16Backward, head_backward<Bfloat16>(call))
