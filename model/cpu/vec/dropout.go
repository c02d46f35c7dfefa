package vec

import "qlora/model/ops"

// Mask is where a row of columns stands in the dropout stream of package ops: column c takes the 16-bit lane c%8 of the
// Philox block with key (Seed, Step) and counter (Group + c/8, Pos, Sample, Module), and is kept where that is at least
// Threshold.
type Mask struct {
	Seed, Step                 uint32
	Group, Pos, Sample, Module uint32
	Threshold                  uint32
}

// Dropout sets dst[c] = scale·x[c] where the mask keeps column c, and 0 elsewhere.
func Dropout(dst, x []float32, m Mask, scale float32) {
	equalLengths(len(dst), len(x))
	n := len(x) &^ (dropoutBlock - 1)
	if n > 0 {
		current.dropout(&dst[0], &x[0], n, m.Seed, m.Step, m.Group, m.Pos, m.Sample, m.Module, m.Threshold, scale)
	}
	if n < len(x) {
		m.Group += uint32(n / 8)
		dropout(dst[n:], x[n:], m, scale)
	}
}

// dropoutBlock is the columns that eight Philox blocks decide.
const dropoutBlock = 64

func dropout(dst, x []float32, m Mask, scale float32) {
	for i := 0; i < len(x); i += 8 {
		lanes := ops.DropLanes(m.Seed, m.Step, m.Group+uint32(i/8), m.Pos, m.Sample, m.Module)
		for j := range min(8, len(x)-i) {
			kept := float32(0)
			if uint32(lanes[j]) >= m.Threshold {
				kept = x[i+j] * scale
			}
			dst[i+j] = kept
		}
	}
}
