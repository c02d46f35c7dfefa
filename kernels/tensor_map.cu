#include "tensor_map.h"

/* cuTensorMapEncodeTiled is the driver's: asked of the runtime, so that nothing links against libcuda. */
static decltype(&cuTensorMapEncodeTiled) encoder() {
  static decltype(&cuTensorMapEncodeTiled) found;  // the same for every thread
  if (!found) {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result) == cudaSuccess)
      found = (decltype(found))entry;
  }
  return found;
}

static qk_status encode(CUtensorMap *map, const char *launcher, const char *tensor, const void *data, int rank,
                        const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box) {
  const auto encode_tiled = encoder();
  if (!encode_tiled) return qk_fail(QK_LAUNCH_FAILED, "%s: the driver has no cuTensorMapEncodeTiled (it needs CUDA 12)", launcher);
  const cuuint32_t ones[3] = {1, 1, 1};
  const int row_bytes = box[0] * 2;
  const CUtensorMapSwizzle swizzle = row_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                       : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult result = encode_tiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, (void *)data, dims, strides, box, ones,
                                       CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return QK_OK;
  return qk_fail(QK_BAD_ARGUMENT, "%s: %s at %p, (%llu, %llu) with rows of %llu bytes, is no TMA tensor (driver error %d)",
                 launcher, tensor, data, (unsigned long long)dims[1], (unsigned long long)dims[0],
                 (unsigned long long)strides[0], (int)result);
}

qk_status qk_tensor_map(CUtensorMap *map, const char *launcher, const tensor_box &t) {
  const cuuint64_t dims[2] = {(cuuint64_t)t.columns, (cuuint64_t)t.rows}, strides[1] = {(cuuint64_t)t.pitch * 2};
  const cuuint32_t box[2] = {(cuuint32_t)t.box_columns, (cuuint32_t)t.box_rows};
  return encode(map, launcher, t.tensor, t.data, 2, dims, strides, box);
}

qk_status qk_tensor_map(CUtensorMap *map, const char *launcher, const tensor_heads &t) {
  const cuuint64_t dims[3] = {64, (cuuint64_t)t.tokens, (cuuint64_t)(t.heads * t.D / 64)};
  const cuuint64_t strides[2] = {(cuuint64_t)t.pitch * 2, 128};
  const cuuint32_t box[3] = {64, (cuuint32_t)t.box_rows, (cuuint32_t)(t.D / 64)};
  return encode(map, launcher, t.tensor, t.data, 3, dims, strides, box);
}
