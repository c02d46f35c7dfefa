//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"slices"

	"qlora/cuda/sizes"
	"qlora/model/ops"
)

// What Sample reads beside the logits lies at the front of the workspace: for each row how many ids the repetition
// penalty is about and the row's number, then those ids. There is room for any one row's, and rows go in groups that fit.

// Sample draws one id for each row of logits.
func (b *Backend) Sample(next, logits ops.Tensor, a ops.SampleArgs) {
	if !b.begin(ops.CheckSample(next, logits, a), stored("Sample", "logits", logits, ops.F32)) {
		return
	}
	n, V := next.Len(), logits.Cols()
	if room := sizes.ContextBytes(V); b.work.Nil() || b.work.Bytes() < room {
		b.fail(fmt.Errorf("cuda: Sample: the workspace has less than %d bytes: it was sized for fewer ids than %d", room, V))
		return
	}
	ids := make([][]int32, n)
	if a.Penalised() {
		for i := range ids {
			ids[i] = distinct(a.Context[i])
		}
	}
	for row := 0; row < n && b.begin(); {
		group := sampleGroup{rows: 1, most: len(ids[row])}
		for row+group.rows < n && group.rows < sizes.SampleRows {
			most := max(group.most, len(ids[row+group.rows]))
			if (group.rows+1)*most > sizes.ContextIDs(V) {
				break
			}
			group = sampleGroup{group.rows + 1, most}
		}
		b.sampleRows(next, logits, a, ids, row, group)
		row += group.rows
	}
}

// sampleGroup is rows drawn by one launch, and the most ids that one of them has.
type sampleGroup struct{ rows, most int }

// distinct is ids in ascending order, each once: the penalty is for having occurred, not for how often.
func distinct(ids []int32) []int32 {
	s := slices.Clone(ids)
	slices.Sort(s)
	return slices.Compact(s)
}

// sampleContext is what the kernel reads of a group: lens, then sequence numbers, then ids.
func sampleContext(a ops.SampleArgs, ids [][]int32, row int, g sampleGroup) []byte {
	words := make([]byte, 0, 4*g.rows*(2+g.most))
	put := func(v uint32) { words = binary.LittleEndian.AppendUint32(words, v) }
	for i := range g.rows {
		put(uint32(len(ids[row+i])))
	}
	for i := range g.rows {
		if a.Temperature > 0 {
			put(a.Sequence[row+i])
		} else {
			put(0)
		}
	}
	for i := range g.rows {
		for j := range g.most {
			if own := ids[row+i]; j < len(own) {
				put(uint32(own[j]))
			} else {
				put(0)
			}
		}
	}
	return words
}

func (b *Backend) sampleRows(next, logits ops.Tensor, a ops.SampleArgs, ids [][]int32, row int, g sampleGroup) {
	var lens, sequence, context C.qk_ptr
	if a.Temperature > 0 || a.Penalised() { // greedy search reads the logits alone
		words := sampleContext(a, ids, row, g)
		front := ops.Tensor{Name: "sample context", DType: ops.I32, Shape: []int{len(words) / 4}, Buf: b.work.Buf, Off: b.work.Off}
		if err := b.upload("Sample", front, words); err != nil {
			return
		}
		lens, sequence, context = at(front), at(front)+C.qk_ptr(4*g.rows), at(front)+C.qk_ptr(8*g.rows)
	}
	used := C.qk_ptr(sizes.ContextBytes(logits.Cols()))
	args := C.qk_sampling{
		temperature: C.double(a.Temperature), top_p: C.double(a.TopP), repetition_penalty: C.double(a.RepetitionPenalty),
		top_k: C.int32_t(a.TopK), limit: C.int32_t(a.Limit), seed: C.uint32_t(a.Seed), step: C.uint32_t(a.Step),
	}
	to, from := next.Slice(next.Name, row, g.rows), logits.Rows(row, row+g.rows)
	b.launch("Sample", func() C.qk_status {
		return C.qk_sample(at(to), at(from), context, lens, sequence, &args, C.int32_t(g.rows), C.int32_t(logits.Cols()), C.int32_t(g.most),
			at(b.work)+used, b.workBytes()-C.int64_t(used), b.onStream())
	}, to, from)
}
