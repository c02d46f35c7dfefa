/* Where the rows of a part of a fused weight lie, and with them the columns of what its product writes. The one place that
knows: another layout, such as gate|up interleaved by 8, is a change here.

A part's own rows are numbered i, as in its checkpoint and in LoRA's B; their places within the part are numbered c in the
order in which they lie. Eight places from a multiple of 8 lie side by side. */
#pragma once

#include <stdint.h>

#include "api.h"

#define QK_LAYOUT __host__ __device__ __forceinline__

/* gate|up (T,2F): columns of gate and up of place f. */
QK_LAYOUT int64_t gate_column(int64_t f, int64_t F) { return f; }
QK_LAYOUT int64_t up_column(int64_t f, int64_t F) { return F + f; }

/* Column in the fused weight's output of place c of module m's part. */
QK_LAYOUT int64_t part_column(const qk_lora &l, const qk_module &m, int c) {
  if (l.kind != QK_GATE_UP) return m.row + c;
  return m.row == 0 ? gate_column(c, m.rows) : up_column(c, m.rows);
}

/* The way back: the place of a column of the fused weight's output in module m's part, -1 where it lies in another. */
QK_LAYOUT int part_place(const qk_lora &, const qk_module &m, int64_t column) {
  return column >= m.row && column < (int64_t)m.row + m.rows ? (int)(column - m.row) : -1;
}

/* The own row of q or k at place c: the halves of each head are interleaved, so that rope pairs lie side by side. */
QK_LAYOUT int rope_row(int c, int D) {
  const int head = c / D, d = c % D;
  return head * D + d / 2 + (d % 2 ? D / 2 : 0);
}

/* The part's own row at place c. */
QK_LAYOUT int own_row(const qk_lora &l, const qk_module &m, int c) {
  return l.kind != QK_QKV || m.row >= (l.h.H + l.h.Hk) * l.h.D ? c : rope_row(c, l.h.D);
}

/* The part of a weight in NF4, and its own row, that makes column n of the fused weight's output. */
struct nf4_row {
  int part, row;
};
QK_LAYOUT nf4_row nf4_row_of(const qk_nf4_weight &w, int n) {
  int part = 0;
  while (part + 1 < w.n && n >= w.part[part].rows) n -= w.part[part++].rows;
  return {part, w.kind == QK_QKV && part < 2 ? rope_row(n, w.h.D) : n};
}

/* The columns of u and du that a module of this rank takes: whole units of 16 bytes. */
QK_LAYOUT int module_columns(int rank) { return (rank + 7) / 8 * 8; }

/* B' of module m, (R, places of its part), in pack_bt; in elements. */
QK_LAYOUT int64_t bt_offset(const qk_lora &l, int m) {
  int64_t at = 0;
  for (int i = 0; i < m; i++) at += (int64_t)l.m[i].rank * l.m[i].rows;
  return at;
}
