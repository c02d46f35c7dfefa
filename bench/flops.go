package bench

import (
	"qlora/model/data"
	"qlora/model/weights"
)

// modelFLOPs are the multiplications and additions that a training step on samples cannot do without, when nothing is
// computed twice: each product forward and its gradient to the input (frozen weights have none of their own, and below the
// first layer's adapters nothing is needed), attention's two products of causal pairs forward and five backward, the
// head on label tokens alone, and six products of the adapters' size. Norms and activations are left out, as is usual.
func modelFLOPs(c weights.Config, adapterParams int, samples data.Samples) float64 {
	tokens, causal := 0.0, 0.0
	for _, s := range samples {
		n := float64(len(s.IDs))
		tokens += n
		causal += n * (n + 1) / 2
	}
	narrow := c.NumAttentionHeads * c.HeadDim
	wide := narrow + 2*c.NumKeyValueHeads*c.HeadDim
	layer := mul(c.HiddenSize, wide) + mul(narrow, c.HiddenSize) + 3*mul(c.HiddenSize, c.IntermediateSize)
	products := 4*layer*float64(c.NumHiddenLayers) - 2*mul(c.HiddenSize, wide)
	head := 4 * mul(c.VocabSize, c.HiddenSize) * float64(data.LabelTokens(samples))
	attention := 14 * causal * mul(narrow, c.NumHiddenLayers)
	return products*tokens + head + attention + 6*float64(adapterParams)*tokens
}
