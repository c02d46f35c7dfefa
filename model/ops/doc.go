// Package ops is the seam between the Qwen2.5 model and the machine it runs on.
//
// A [Backend] runs about twenty fused steps, forward and backward paired. What a
// backward needs is an explicit argument, in the order outputs, saved, inputs,
// constants. No method allocates; every tensor comes from an arena laid out before
// the first step. Arguments are checked here, in Go (see check.go), so that every
// backend refuses the same mistakes with the same words. Errors stick to the backend
// and come out of [Backend.Sync], so that model code reads as a list of ops.
//
// # Letters
//
// The same letters name dimensions in .go and .cu files:
//
//	T   packed tokens          S  segments (sequences packed in one row)
//	C   hidden size            F  feed-forward size        V  vocabulary rows
//	H   query heads            Hk key/value heads          D  head size
//	R   LoRA rank              N  label rows               L  layers
//
// Tensors are row-major. x is the residual stream, xn a normed one; q k v o lse,
// gate up act as in the papers; a gradient is d + name.
//
// # LoRA in one picture
//
// A module computes y = x·Wᵀ + s·dropout(x)·Aᵀ·Bᵀ with A (R,in), B (out,R), s = alpha/R.
// With the scale folded into the small tensors,
//
//	u  = s · dropout(x)·Aᵀ   (T,R)      y  += u·Bᵀ
//	du = s · dy·B            (T,R)      dx += mask∘(du·A)
//	dB += dyᵀ·u                         dA += duᵀ·dropout(x)
//
// u is written by whoever writes x, du by whoever writes dy, so that no wide tensor is
// read twice. The dX product itself stays plain (dx = dy·W): the term mask∘(du·A) is added
// where dx is next read, because under dropout each module has a mask of its own.
package ops
