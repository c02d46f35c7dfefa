package cpu

import (
	"cmp"
	"math"
	"slices"

	"qlora/model/ops"
)

// Sample draws one id for each row of logits.
func (b *Backend[T]) Sample(next, logits ops.Tensor, a ops.SampleArgs) {
	if !b.begin(ops.CheckSample(next, logits, a)) {
		return
	}
	defer b.finish()
	values, V, to := b.in(logits), logits.Cols(), view[int32](next)
	row := make([]float32, V)
	for i := range to {
		for j, x := range values[i*V : (i+1)*V] {
			row[j] = float32(x)
		}
		var ctx []int32
		if len(a.Context) > 0 {
			ctx = a.Context[i]
		}
		id := -1
		if a.Temperature == 0 {
			limit(row, a.Limit)
			penalise(row, ctx, a.RepetitionPenalty)
			id = argmax(row)
		} else if p := Distribution(row, ctx, a); p != nil {
			id = draw(p, ops.SampleUniform(a.Seed, a.Step, a.Sequence[i]))
		}
		to[i] = int32(id)
	}
}

// Distribution is the probabilities of the ids after all stages, for a temperature above 0: repetition penalty,
// temperature, top-k, top-p, softmax, each as in transformers. logits is overwritten: -Inf marks what was dropped. It
// returns nil where no probability can be told (a NaN, or no logit above -Inf).
func Distribution(logits []float32, ctx []int32, a ops.SampleArgs) []float64 {
	limit(logits, a.Limit)
	penalise(logits, ctx, a.RepetitionPenalty)
	temper(logits, a.Temperature)
	topK(logits, a.TopK)
	topP(logits, a.TopP)
	return softmax(logits)
}

var dropped = float32(math.Inf(-1))

// limit drops the ids from n on; 0 is off.
func limit(logits []float32, n int) {
	if n > 0 {
		for i := n; i < len(logits); i++ {
			logits[i] = dropped
		}
	}
}

// penalise makes every id of ctx less likely, once: l·p below zero, l/p elsewhere (Keskar et al., CTRL, 2019). 0 and 1 are
// off.
func penalise(logits []float32, ctx []int32, p float64) {
	if p == 0 || p == 1 {
		return
	}
	seen := make(map[int32]bool, len(ctx))
	for _, id := range ctx {
		if seen[id] {
			continue
		}
		seen[id] = true
		if l := logits[id]; l < 0 {
			logits[id] = l * float32(p)
		} else {
			logits[id] = l / float32(p)
		}
	}
}

func temper(logits []float32, t float64) {
	for i := range logits {
		logits[i] /= float32(t)
	}
}

// topK drops what is below the k-th largest logit; equals of it stay. 0 is off.
func topK(logits []float32, k int) {
	if k == 0 || k >= len(logits) {
		return
	}
	best := make([]float32, 0, k+1) // the largest so far, descending
	for _, l := range logits {
		if len(best) == k && l <= best[k-1] {
			continue
		}
		at, _ := slices.BinarySearchFunc(best, l, func(a, b float32) int { return cmp.Compare(b, a) })
		best = slices.Insert(best, at, l)
		best = best[:min(k, len(best))]
	}
	for i, l := range logits {
		if l < best[k-1] {
			logits[i] = dropped
		}
	}
}

// topP drops the least likely ids, as many as their probabilities add up to 1-p or less; the most likely one stays. 0
// and 1 are off. Probabilities are float32 and their sum a float64, as torch's cumsum.
func topP(logits []float32, p float64) {
	if p == 0 || p == 1 {
		return
	}
	probs := softmax(logits)
	if probs == nil {
		return
	}
	ids := make([]int, 0, 64)
	for i, q := range probs {
		if q > 0 {
			ids = append(ids, i)
		} else {
			logits[i] = dropped
		}
	}
	slices.SortStableFunc(ids, func(a, b int) int { return cmp.Compare(logits[a], logits[b]) })
	sum := 0.0
	for _, id := range ids[:len(ids)-1] {
		sum += float64(float32(probs[id]))
		if float32(sum) > float32(1-p) {
			break
		}
		logits[id] = dropped
	}
}

// softmax is nil where there is no finite largest logit.
func softmax(logits []float32) []float64 {
	top := argmax(logits)
	if top < 0 {
		return nil
	}
	probs, sum := make([]float64, len(logits)), 0.0
	for i, l := range logits {
		if l == dropped {
			continue
		}
		probs[i] = math.Exp(float64(l) - float64(logits[top]))
		sum += probs[i]
	}
	for i := range probs {
		probs[i] /= sum
	}
	return probs
}

// argmax is the lowest id of the largest logit; -1 where that is not finite or one is NaN.
func argmax(logits []float32) int {
	best := 0
	for i, l := range logits {
		if l != l {
			return -1
		}
		if l > logits[best] {
			best = i
		}
	}
	if math.IsInf(float64(logits[best]), 0) {
		return -1
	}
	return best
}

// draw is the first id at which the sum of the probabilities, in the order of ids, exceeds u in [0,1); the last
// possible id where rounding keeps the sum below u.
func draw(p []float64, u float64) int {
	sum, last := 0.0, -1
	for id, q := range p {
		if q == 0 {
			continue
		}
		sum, last = sum+q, id
		if u < sum {
			break
		}
	}
	return last
}
