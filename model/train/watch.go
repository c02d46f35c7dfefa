package train

import (
	"encoding/binary"
	"math"

	"qlora/model/ops"
)

// watch passes the ops of a forward on to a backend, and looks at what each leaves: only where a loss was not finite, as
// every activation is read back.
type watch struct {
	ops.Backend
	last  string // the product before
	found string // the first activation that is not finite
	err   error
}

// firstActivation runs the forward of the loaded batch again, to the same bits, and names the first activation that
// is not finite: "" where all are.
func (r *Run) firstActivation() (string, error) {
	w := &watch{Backend: r.Backend, last: "the embeddings"}
	r.Model.Through(w, r.Model.Forward)
	if err := r.Backend.Sync(); err != nil {
		return "", err
	}
	return w.found, w.err
}

// look reads an activation, unless one before it was found.
func (w *watch) look(what string, t ops.Tensor) {
	if w.found != "" || w.err != nil {
		return
	}
	raw := make([]byte, t.Bytes())
	if w.err = w.Backend.Read(raw, t); w.err == nil && !allFinite(raw, t.DType) {
		w.found = what
	}
}

// allFinite looks at values as they are stored: float32, or bfloat16, which is its upper half.
func allFinite(raw []byte, d ops.DType) bool {
	size := int(d.Size())
	for at := 0; at < len(raw); at += size {
		var bits uint32
		if d == ops.BF16 {
			bits = uint32(binary.LittleEndian.Uint16(raw[at:])) << 16
		} else {
			bits = binary.LittleEndian.Uint32(raw[at:])
		}
		if !finite(float64(math.Float32frombits(bits))) {
			return false
		}
	}
	return true
}

func (w *watch) Embed(x ops.Tensor, table ops.Weight, b *ops.Batch) {
	w.Backend.Embed(x, table, b)
	w.look("the embeddings", x)
}

func (w *watch) RMSNorm(xn, rho, u, x, weight ops.Tensor, eps float32, l *ops.LoRA, b *ops.Batch) {
	w.Backend.RMSNorm(xn, rho, u, x, weight, eps, l, b)
	w.look("the norm after "+w.last, xn)
}

func (w *watch) Linear(y, x ops.Tensor, weight ops.Weight, u ops.Tensor, l *ops.LoRA, e ops.Epilogue, b *ops.Batch) {
	w.Backend.Linear(y, x, weight, u, l, e, b)
	w.last = weight.Spec().Name
	w.look("the output of "+w.last, y)
}

func (w *watch) Attention(o, lse, u, qkv ops.Tensor, h ops.Heads, l *ops.LoRA, b *ops.Batch) {
	w.Backend.Attention(o, lse, u, qkv, h, l, b)
	w.look("the attention after "+w.last, o)
}

func (w *watch) SwiGLU(act, u, gateup ops.Tensor, l *ops.LoRA, b *ops.Batch) {
	w.Backend.SwiGLU(act, u, gateup, l, b)
	w.look("the activation after "+w.last, act)
}
