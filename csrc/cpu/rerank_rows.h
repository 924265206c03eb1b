// The inner loop of `rerank`'s products on the CPU, written once and compiled for each instruction set. The including
// file defines, for every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET (a function attribute); hence no #pragma once.
// Plain loops: compilers make vectors of them.

namespace mgran {
namespace MGRAN_NAMESPACE {

#include "dot_rows.h"

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
