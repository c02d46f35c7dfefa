package opstest

import (
	"fmt"
	"math"

	"qlora/model/ops"
)

// tolerance is how far an output may be from the oracle's.
type tolerance struct {
	rule rule
	// coarse is what a plain computation in bfloat16 gives (attention alone).
	coarse []float64
}

type rule uint8

const (
	// elementwise: float32 NMSE <= 1e-10; bfloat16 within 1 ulp of the oracle's.
	elementwise rule = iota
	// product, of a sum over a dimension of operands stored as activations are: float32 NMSE <= 1e-10;
	// beside bfloat16 activations calc_diff < 1e-5 (DeepGEMM), about seven roundings of the result.
	product
	// attention: float32 NMSE <= 1e-10; bfloat16 by FlashAttention's rule, at most twice the error of a
	// plain bfloat16 computation.
	attention
	// nats: within 1e-5, of a divergence whose terms nearly cancel.
	nats
	// exact: equal.
	exact
	// free: not compared.
	free
)

var (
	byElement = tolerance{rule: elementwise}
	byProduct = tolerance{rule: product}
	byRule    = tolerance{rule: attention}
	byNats    = tolerance{rule: nats}
	equal     = tolerance{rule: exact}
	anything  = tolerance{rule: free}
)

const (
	maxNMSE     = 1e-10
	maxCalcDiff = 1e-5
)

// compare holds got, stored as d beside activations of type store, to want.
func (t tolerance) compare(got, want []float64, d, store ops.DType) error {
	if t.rule == free {
		return nil
	}
	for i, v := range got {
		if math.IsNaN(v) != math.IsNaN(want[i]) || math.IsInf(v, 0) != math.IsInf(want[i], 0) {
			return fmt.Errorf("element %d is %g, the oracle's %g", i, v, want[i])
		}
	}
	coarse := store == ops.BF16
	switch {
	case t.rule == exact:
		return exactly(got, want)
	case len(got) == 0:
		return nil
	case t.rule == nats:
		at := worst(got, want)
		return below("error in nats", math.Abs(got[at]-want[at]), 1e-5, got, want)
	case t.rule == elementwise && d == ops.BF16:
		return withinUlp(got, want)
	case t.rule == product && coarse:
		return below("calc_diff", calcDiff(got, want), maxCalcDiff, got, want)
	case t.rule == attention && d == ops.BF16:
		return t.twice(got, want)
	case t.rule == attention && coarse:
		return below("calc_diff", calcDiff(got, want), maxCalcDiff, got, want)
	}
	return below("NMSE", nmse(got, want), maxNMSE, got, want)
}

func below(name string, v, limit float64, got, want []float64) error {
	if v <= limit {
		return nil
	}
	at := worst(got, want)
	return fmt.Errorf("%s %.3g > %g; worst at element %d: %.9g, the oracle's %.9g", name, v, limit, at, got[at], want[at])
}

func worst(got, want []float64) int {
	at, most := 0, -1.0
	for i := range got {
		if d := math.Abs(got[i] - want[i]); d > most {
			at, most = i, d
		}
	}
	return at
}

// nmse is Σ(a-b)²/Σb².
func nmse(a, b []float64) float64 {
	var err, ref float64
	for i := range a {
		err += (a[i] - b[i]) * (a[i] - b[i])
		ref += b[i] * b[i]
	}
	if err == 0 {
		return 0
	}
	return err / ref
}

// calcDiff is 1 - 2Σab/Σ(a²+b²), written as Σ(a-b)²/Σ(a²+b²) to keep its digits.
func calcDiff(a, b []float64) float64 {
	var err, ref float64
	for i := range a {
		err += (a[i] - b[i]) * (a[i] - b[i])
		ref += a[i]*a[i] + b[i]*b[i]
	}
	if err == 0 {
		return 0
	}
	return err / ref
}

func exactly(got, want []float64) error {
	for i, v := range got {
		if v != want[i] && !(math.IsNaN(v) && math.IsNaN(want[i])) {
			return fmt.Errorf("element %d is %g, the oracle's %g", i, v, want[i])
		}
	}
	return nil
}

// withinUlp allows one bfloat16 ulp of the oracle's value, and where terms cancel the rounding of
// float32 sums at the size of the tensor.
func withinUlp(got, want []float64) error {
	most := 0.0
	for _, v := range want {
		most = max(most, math.Abs(v))
	}
	for i, v := range got {
		ref := round(want[i], ops.BF16)
		ulp := 0.0
		if ref != 0 {
			_, e := math.Frexp(ref)
			ulp = math.Ldexp(1, e-8)
		}
		if math.Abs(v-ref) > ulp+most*0x1p-20 {
			return fmt.Errorf("element %d is %g, the oracle's %g: more than one bfloat16 ulp (%g)", i, v, want[i], ulp)
		}
	}
	return nil
}

// twice is FlashAttention's rule: max|got-want| <= 2·max|coarse-want| + atol, atol = twice what
// adding and taking away 0.3 does to the result in bfloat16.
func (t tolerance) twice(got, want []float64) error {
	var err, plain, atol float64
	for i, w := range want {
		err = max(err, math.Abs(got[i]-w))
		plain = max(plain, math.Abs(t.coarse[i]-w))
		stored := round(w, ops.BF16)
		atol = max(atol, math.Abs(round(round(stored+0.3, ops.BF16)-0.3, ops.BF16)-stored))
	}
	return below("max error", err, 2*plain+2*atol, got, want)
}
