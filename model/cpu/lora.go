package cpu

import "qlora/model/ops"

// The four products of a LoRA (ops: "LoRA in one picture"), each for tokens lo to hi of the batch. Wide and low operands
// hold these tokens alone: their first row is token lo.

// span is a run of tokens of a batch.
type span struct {
	h      *ops.HostBatch
	lo, hi int
}

func whole(b *ops.Batch) span { return span{&b.Host, 0, b.T} }

func (s span) len() int { return s.hi - s.lo }

// loraDown writes u (·,Rank) = s·dropout(x)·Aᵀ, x (·,in).
func (b *Backend[T]) loraDown(u, x []T, l *ops.LoRA, s span) {
	if l == nil {
		return
	}
	in := l.Modules[0].A.Cols()
	for i := range l.Modules {
		m, col := &l.Modules[i], l.Col(i)
		mark := b.scratch.used
		mulT(u[col:], l.Width, b.dropped(x, in, m, s.h, s.lo, s.hi), in, b.in(m.A), in, s.len(), m.Rank, in, false)
		scaleColumns(u[col:], l.Width, s.len(), m.Rank, T(m.Scale))
		zeroColumns(u[col:], l.Width, s.len(), m)
		b.scratch.used = mark
	}
}

// loraAdd adds u·Bᵀ to y (·,out), out the rows of parts together.
func (b *Backend[T]) loraAdd(y, u []T, l *ops.LoRA, parts []int, s span) {
	if l == nil {
		return
	}
	out := total(parts)
	for i := range l.Modules {
		m := &l.Modules[i]
		mulT(y[l.Row(i, parts):], out, u[l.Col(i):], l.Width, b.in(m.B), m.Rank, s.len(), parts[m.Part], m.Rank, true)
	}
}

// loraUp writes du (·,Rank) = s·dy·B.
func (b *Backend[T]) loraUp(du, dy []T, l *ops.LoRA, parts []int, s span) {
	if l == nil {
		return
	}
	out := total(parts)
	for i := range l.Modules {
		m, col := &l.Modules[i], l.Col(i)
		mul(du[col:], l.Width, dy[l.Row(i, parts):], out, b.in(m.B), m.Rank, s.len(), m.Rank, parts[m.Part], false)
		scaleColumns(du[col:], l.Width, s.len(), m.Rank, T(m.Scale))
		zeroColumns(du[col:], l.Width, s.len(), m)
	}
}

// loraBack adds Σ mask∘(du·A) to dx (·,in).
func (b *Backend[T]) loraBack(dx, du []T, l *ops.LoRA, s span) {
	if l == nil {
		return
	}
	in := l.Modules[0].A.Cols()
	for i := range l.Modules {
		m, col := &l.Modules[i], l.Col(i)
		a := b.in(m.A)
		if ops.DropThreshold(m.Drop) == 0 {
			mul(dx, in, du[col:], l.Width, a, in, s.len(), in, m.Rank, true)
			continue
		}
		mark := b.scratch.used
		term := b.scratch.take(s.len() * in)
		mul(term, in, du[col:], l.Width, a, in, s.len(), in, m.Rank, false)
		b.rows(s.len(), func(t int) {
			row, to := term[t*in:(t+1)*in], dx[t*in:(t+1)*in]
			dropRow(row, row, m, s.h, s.lo+t)
			addTo(to, row)
		})
		b.scratch.used = mark
	}
}

// gradA adds duᵀ·dropout(x) to dA of every module.
func (b *Backend[T]) gradA(x, du []T, l *ops.LoRA, s span) {
	if l == nil {
		return
	}
	in := l.Modules[0].A.Cols()
	for i := range l.Modules {
		m := &l.Modules[i]
		da := b.inout(m.DA)
		mark := b.scratch.used
		tMul(da, in, du[l.Col(i):], l.Width, b.dropped(x, in, m, s.h, s.lo, s.hi), in, m.Rank, in, s.len(), true)
		b.scratch.used = mark
	}
}

// gradB adds dyᵀ·u to dB of every module.
func (b *Backend[T]) gradB(dy, u []T, l *ops.LoRA, parts []int, s span) {
	if l == nil {
		return
	}
	out := total(parts)
	for i := range l.Modules {
		m := &l.Modules[i]
		tMul(b.inout(m.DB), m.Rank, dy[l.Row(i, parts):], out, u[l.Col(i):], l.Width, parts[m.Part], m.Rank, s.len(), true)
	}
}

// LoRAGrad adds to dA or dB of the modules of each job.
func (b *Backend[T]) LoRAGrad(jobs []ops.GradJob, batch *ops.Batch) {
	if !b.begin(ops.CheckLoRAGrad(jobs, batch)) {
		return
	}
	defer b.finish()
	for _, j := range jobs {
		wide, low := b.in(j.Wide), b.in(j.Low)
		if j.Side == ops.SideA {
			if !j.Norm.Rho.Nil() {
				wide = b.normed(wide, j.Norm, j.Wide.DType)
			}
			b.gradA(wide, low, j.LoRA, whole(batch))
		} else {
			b.gradB(wide, low, j.LoRA, j.LoRA.Weight.Parts, whole(batch))
		}
	}
}

// normed is xn of the rows of x, in scratch memory.
func (b *Backend[T]) normed(x []T, n ops.Norm, d ops.DType) []T {
	w, rhos := b.in(n.W), b.in(n.Rho)
	C, xn := len(w), b.scratch.take(len(x))
	b.rows(len(x)/C, func(t int) { normalise(xn[t*C:(t+1)*C], x[t*C:(t+1)*C], rhos[t], w, d) })
	return xn
}

// zeroColumns clears the columns of a module that are beyond its rank; its first column is that of x, rows are ld apart.
func zeroColumns[T Float](x []T, ld, rows int, m *ops.Module) {
	for r := range rows {
		clear(x[r*ld+m.Rank : r*ld+m.Width()])
	}
}

// scaleColumns multiplies the first n columns of x by s; rows are ld apart.
func scaleColumns[T Float](x []T, ld, rows, n int, s T) {
	for r := range rows {
		row := x[r*ld : r*ld+n]
		for i := range row {
			row[i] *= s
		}
	}
}

func total(parts []int) int {
	n := 0
	for _, p := range parts {
		n += p
	}
	return n
}
