package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"qlora/bench/result"
)

// PeersGrid sets other trainers and ours side by side, the fastest first, as they ran in one session.
func PeersGrid(f *result.File) Grid {
	g := Grid{Title: "Peers: the same step, in one run on " + f.Environment.Device(), Head: []string{"trainer", "model", "rows", "recomputes", "step", "tokens/s", "memory", "first step", "of ours"}, Left: 4}
	steps := Steps(f)
	ours := map[string]float64{}
	for _, s := range steps {
		if strings.HasPrefix(s.Row.Params["trainer"], "qlora") {
			ours[peerKey(s)] = s.Tokens
		}
	}
	slices.SortStableFunc(steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(b.Tokens, a.Tokens))
	})
	for _, s := range steps {
		p := s.Row.Params
		ratio := dash
		if base := ours[peerKey(s)]; base > 0 {
			ratio = share(s.Tokens / base)
		}
		g.add(p["trainer"], model(s.Model), fmt.Sprintf("%s x %s", cmp.Or(p["rows"], "1"), p["tokens"]), cmp.Or(p["checkpointing"], "no"), seconds(s.Median), count(s.Tokens), gib(max(s.Process, s.Arena)), cmp.Or(p["first"], dash), ratio)
	}
	return g
}

// peerKey is what must be the same for a ratio: model, storage of the base and tokens of a step.
func peerKey(s Step) string {
	return fmt.Sprintf("%s %t %v", s.Model, strings.HasSuffix(s.Row.Params["trainer"], "-nf4"), s.Row.Tokens)
}
