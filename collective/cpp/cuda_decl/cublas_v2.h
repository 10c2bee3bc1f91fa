// Declarations only: torch's CUDA headers name these handles, and the plugin uses none of them, so
// that compiling it needs none of the large wheels that hold the real headers. Where those wheels
// are there, they come first in the search path.
#pragma once
typedef struct cublasContext* cublasHandle_t;
enum cublasStatus_t : int;
