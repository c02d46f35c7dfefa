// Package plan says, before anything is loaded and without a card, what a run takes: its memory by category, what each
// layer keeps, what is kept less of to stay within a budget, and a prediction of the time of a step.
//
// The memory is that of qwen2.Buffers, to the byte. The time is a roofline: the model's own list of ops, run on a [Meter] that
// computes nothing, each op at the share of the card's peak that results/ has measured for it.
package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Card is what a prediction knows of a card.
type Card struct {
	Name            string // of --card
	Title           string
	GiB             float64 // that a process may take: what the card shows, less what the driver and a screen keep
	Multiprocessors int
	TFLOPs          float64 // dense bfloat16 with float32 sums
	GBps            float64 // of its memory
	Bus             float64 // GB/s to and from pinned host memory
	Hopper          bool    // wgmma kernels
}

// cards are from the makers' data sheets; bus rates are what pinned copies reach on PCIe 4.0 and 5.0 x16.
var cards = map[string]Card{
	"rtx3090":  {"rtx3090", "GeForce RTX 3090", 23.0, 82, 71, 936, 24, false},
	"rtx4090":  {"rtx4090", "GeForce RTX 4090", 23.0, 128, 165.2, 1008, 24, false},
	"rtx4090d": {"rtx4090d", "GeForce RTX 4090 D", 23.0, 114, 147.1, 1008, 24, false},
	"rtx5090":  {"rtx5090", "GeForce RTX 5090", 30.8, 170, 209.5, 1792, 50, false},
	"a100-40g": {"a100-40g", "A100 40 GB", 38.9, 108, 312, 1555, 24, false},
	"a100-80g": {"a100-80g", "A100 80 GB", 78.8, 108, 312, 2039, 24, false},
	"h100":     {"h100", "H100 SXM 80 GB", 78.6, 132, 989.4, 3350, 53, true},
	"h200":     {"h200", "H200 SXM 141 GB", 139.0, 132, 989.4, 4800, 53, true},
}

// Processor stands for a machine without a card: what counts is how its figures compare with each other.
var Processor = Card{Title: "processor", Multiprocessors: 1, TFLOPs: 0.2, GBps: 20, Bus: 10}

// CardNames lists the cards of --card.
func CardNames() []string { return slices.Sorted(maps.Keys(cards)) }

// CardNamed is a card by the name of --card.
func CardNamed(name string) (Card, error) {
	if c, ok := cards[strings.ToLower(name)]; ok {
		return c, nil
	}
	return Card{}, fmt.Errorf("no card %q is known: choose %s", name, strings.Join(CardNames(), ", "))
}

// CardLike is the card that a driver's name is of. Of one that is not known it is the card nearest in multiprocessors, under
// the driver's name: good enough to choose between two ways of saving memory.
func CardLike(driver string, multiprocessors int) Card {
	compact := strings.ReplaceAll(strings.ToLower(driver), " ", "")
	for _, match := range []struct{ part, name string }{{"4090d", "rtx4090d"}, {"4090", "rtx4090"}, {"3090", "rtx3090"}, {"5090", "rtx5090"},
		{"a100-sxm4-40", "a100-40g"}, {"a100-pcie-40", "a100-40g"}, {"a100", "a100-80g"}, {"h100", "h100"}, {"h200", "h200"}} {
		if strings.Contains(compact, match.part) {
			return cards[match.name]
		}
	}
	nearest := cards["h100"]
	for _, name := range CardNames() {
		if c := cards[name]; abs(c.Multiprocessors-multiprocessors) < abs(nearest.Multiprocessors-multiprocessors) {
			nearest = c
		}
	}
	nearest.Name, nearest.Title, nearest.Multiprocessors = "", driver, max(multiprocessors, 1)
	return nearest
}

func abs(n int) int { return max(n, -n) }

// Context is what the driver takes for the process beside the run's one block: the context, the kernels' code, which is
// loaded as it is first launched, the stack of every thread. A bound: `qlora sft` measures what it was and says so, and
// scripts/gpu-check.sh fails where it was more.
const Context = 640 << 20
