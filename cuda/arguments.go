//go:build cuda

package cuda

/*
#include "api.h"
*/
import "C"

import (
	"runtime"

	"qlora/cuda/sizes"
	"qlora/model/ops"
)

// arguments are the structs that launchers take by address. They are read before a launcher returns, so one of each
// that an op can need serves all.
type arguments struct {
	batch C.qk_batch
	lora  [2]C.qk_lora
}

// batch is b's addresses and sizes.
func (b *Backend) batch(of *ops.Batch) *C.qk_batch {
	b.args.batch = C.qk_batch{
		header: at(of.Block), ids: at(of.IDs), pos: at(of.Pos), sample: at(of.Sample),
		seg_start: at(of.SegStart), rows: at(of.Rows), targets: at(of.Targets),
		T: C.int32_t(of.T), S: C.int32_t(of.S), N: C.int32_t(of.N),
		seed: C.uint32_t(of.Host.Seed), step: C.uint32_t(of.Host.Step), smoothing: C.float(of.Host.Smoothing),
	}
	return &b.args.batch
}

// lora is l for a launcher's first (0) or second (1) argument of that kind, null where it is absent.
func (b *Backend) lora(i int, l *ops.LoRA) *C.qk_lora {
	if l == nil {
		return nil
	}
	b.args.lora[i] = loraOf(l)
	return &b.args.lora[i]
}

func loraOf(l *ops.LoRA) C.qk_lora {
	spec := &l.Weight
	to := C.qk_lora{n: C.int32_t(len(l.Modules)), rank: C.int32_t(l.Width), in: C.int32_t(spec.Cols), out: C.int32_t(spec.Rows()),
		kind: C.int32_t(spec.Kind), h: headsOf(*spec)}
	if !l.Pack.Nil() {
		p := sizes.PackOf(l)
		to.pack_a, to.pack_b = at(l.Pack), at(l.Pack)+C.qk_ptr(p.A)
		if p.BT > 0 {
			to.pack_bt = to.pack_b + C.qk_ptr(p.B)
		}
	}
	for i := range l.Modules {
		m := &l.Modules[i]
		to.m[i] = C.qk_module{
			rank: C.int32_t(m.Rank), col: C.int32_t(l.Col(i)),
			row: C.int32_t(l.Row(i, spec.Parts)), rows: C.int32_t(spec.Parts[m.Part]),
			scale: C.float(m.Scale), threshold: C.uint32_t(ops.DropThreshold(m.Drop)), stream: C.uint32_t(m.Stream),
			a: at(m.A), b: at(m.B), da: at(m.DA), db: at(m.DB),
		}
	}
	return to
}

// heads is the shape of attention.
func heads(h ops.Heads) C.qk_heads {
	return C.qk_heads{H: C.int32_t(h.H), Hk: C.int32_t(h.Hk), D: C.int32_t(h.D)}
}

// headsOf is the heads whose rows a QKV weight holds; none of another kind.
func headsOf(s ops.WeightSpec) C.qk_heads {
	if s.Kind != ops.QKV {
		return C.qk_heads{}
	}
	return C.qk_heads{H: C.int32_t(s.Parts[0] / s.HeadDim), Hk: C.int32_t(s.Parts[1] / s.HeadDim), D: C.int32_t(s.HeadDim)}
}

// jobs are gradient jobs with their adapters, pinned as C reads them through each other; call unpin after the launch.
func jobs(of []ops.GradJob) (all []C.qk_grad_job, unpin func()) {
	all, adapters := make([]C.qk_grad_job, len(of)), make([]C.qk_lora, len(of))
	var pinner runtime.Pinner
	for i, j := range of {
		adapters[i] = loraOf(j.LoRA)
		pinner.Pin(&adapters[i])
		all[i] = C.qk_grad_job{l: &adapters[i], side: C.int32_t(j.Side), wide: at(j.Wide), low: at(j.Low),
			rho: at(j.Norm.Rho), w: at(j.Norm.W), w_type: C.int32_t(j.Norm.W.DType)}
	}
	return all, pinner.Unpin
}
