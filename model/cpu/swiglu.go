package cpu

import "qlora/model/ops"

// SwiGLU writes act = silu(gate)·up and u of act's reader.
func (b *Backend[T]) SwiGLU(act, u, gateup ops.Tensor, l *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckSwiGLU(act, u, gateup, l, batch)) {
		return
	}
	defer b.finish()
	F, from, to := act.Cols(), b.in(gateup), b.out(act)
	b.rows(batch.T, func(t int) {
		row := to[t*F : (t+1)*F]
		swiGLU(row, from[2*t*F:][:F], from[(2*t+1)*F:][:F])
		round(row, act.DType)
	})
	if l != nil {
		b.loraDown(b.out(u), to, l, whole(batch))
	}
}

// SwiGLUBack writes dgate, dup in place of gateup, and what depends on them: duGU, dA of down, dB of gate and up. It goes
// by blocks of tokens, so that act, made again, is held for one block alone.
func (b *Backend[T]) SwiGLUBack(gateup, duGU, dact, duDown, uGU ops.Tensor, down, gu *ops.LoRA, batch *ops.Batch) {
	if !b.begin(ops.CheckSwiGLUBack(gateup, duGU, dact, duDown, uGU, down, gu, batch)) {
		return
	}
	defer b.finish()
	F, from, to := dact.Cols(), b.in(dact), b.inout(gateup)
	parts := []int{F, F}
	var duD, uG, duG []T
	if down != nil {
		duD = b.in(duDown)
	}
	if gu != nil {
		uG, duG = b.in(uGU), b.out(duGU)
	}
	act, d := b.scratch.take(ops.GradBlock*F), b.scratch.take(ops.GradBlock*F)
	for lo := 0; lo < batch.T; lo += ops.GradBlock {
		s := span{&batch.Host, lo, min(lo+ops.GradBlock, batch.T)}
		rows := to[2*lo*F : 2*s.hi*F]
		b.rows(s.len(), func(t int) {
			copy(d[t*F:(t+1)*F], from[(lo+t)*F:])
			if down != nil {
				row := act[t*F : (t+1)*F]
				swiGLU(row, rows[2*t*F:][:F], rows[(2*t+1)*F:][:F])
				round(row, gateup.DType)
			}
		})
		if down != nil {
			low := duD[lo*down.Width:]
			b.loraBack(d, low, down, s)
			b.gradA(act, low, down, s)
		}
		b.rows(s.len(), func(t int) {
			swiGLUBack(rows[2*t*F:][:F], rows[(2*t+1)*F:][:F], d[t*F:(t+1)*F])
			round(rows[2*t*F:][:2*F], gateup.DType)
		})
		if gu != nil {
			b.loraUp(duG[lo*gu.Width:], rows, gu, parts, s)
			b.gradB(rows, uG[lo*gu.Width:], gu, parts, s)
		}
	}
}
