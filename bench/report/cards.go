package report

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"qlora/bench/compare"
	"qlora/bench/result"
	"qlora/bench/stat"
	"qlora/model/plan"
)

// Predictor says how long a step takes on a card that is not here, and what the run keeps less of to fit. It fails where it
// does not know the step, or the step does not fit.
type Predictor interface {
	Predict(step result.Row, c plan.Card) (seconds float64, how string, err error)
}

// CardOf is what a plan knows of a card: false of one that it only guesses at.
func CardOf(c *result.Card) (plan.Card, bool) {
	if c == nil {
		return plan.Card{}, false
	}
	known := plan.CardLike(c.Name, c.Processors)
	return known, known.Name != ""
}

// Card is what one device does.
type Card struct {
	Device    string
	Known     plan.Card // zero where no plan knows it
	Memory    int64     // of the card; of a prediction, what a process may take of it
	Step      *Step     // the step by which cards are compared
	Job       float64
	JobMemory int64
	PerWatt   float64 // tokens a joule
	Remark    string

	Predicted bool
	Seconds   float64 // of a step, predicted
	Tokens    float64 // a second, measured or predicted
	Error     float64 // of the prediction for this card, over what was measured; 0: none was made
}

// Cards compares devices by one training step.
type Cards struct {
	Key   string // of the step
	Row   result.Row
	Cards []Card // measured first, the fastest first
	// Kernels compares the cards that have kernels with the first of them.
	Kernels []KernelRatio
	First   string
}

// KernelRatio is how many times as fast a card is at a kernel as the first.
type KernelRatio struct {
	Device, Kernel string
	Ratio, Lo, Hi  float64
	Significant    bool
}

// reference is the step by which cards are compared where more than one is measured alike.
var reference = map[string]string{"model": "qwen2.5-7b", "tokens": "2048", "rank": "8", "dropout": "0", "labels": "1", "samples": "1", "rows": "1", "targets": "all-linear", "method": "bf16", "variant": "", "budget": ""}

// CompareCards sets devices side by side, the newest result of each, and predicts the cards nobody ran.
func CompareCards(files []*result.File, p Predictor) Cards {
	var c Cards
	files = result.Join(files)
	steps, kernels := map[string]*Step{}, map[string]*result.File{}
	jobs := map[string]result.Row{}
	environment := map[string]result.Environment{}
	c.Key = commonStep(files)
	for _, f := range files { // oldest first: the newest wins
		device := f.Environment.Device()
		if device == "" {
			continue
		}
		if have, ok := environment[device]; !ok || f.Environment.Card != nil && (have.Card == nil || f.Environment.Card.Memory > 0) {
			environment[device] = f.Environment
		}
		for _, s := range Steps(f) {
			if stepKey(s.Row) == c.Key && s.Row.Params["trainer"] == "" {
				steps[device] = &s
			}
		}
		if f.Kind == result.Kernels && f.Schema == result.Schema {
			kernels[device] = f
		}
		if f.Kind == result.Job {
			for _, r := range f.Rows {
				if r.Name == "job" && len(r.Seconds) > 0 {
					jobs[device] = r
				}
			}
		}
	}
	for _, device := range slices.Sorted(maps.Keys(environment)) {
		if steps[device] == nil && kernels[device] == nil && jobs[device].Name == "" {
			continue
		}
		c.Cards = append(c.Cards, measuredCard(device, environment[device], steps[device], jobs[device]))
	}
	slices.SortStableFunc(c.Cards, func(a, b Card) int { return cmp.Compare(b.Tokens, a.Tokens) })
	c.predict(p)
	c.compareKernels(kernels)
	return c
}

// stepKey names the shape of a step, whatever the run was called. Rows of schema 1 tell model and tokens alone.
func stepKey(r result.Row) string {
	p := r.Params
	if p["run"] != "" {
		if p["run"] != strings.TrimPrefix(p["model"], "qwen2.5-") || r.Tokens == 0 {
			return "run " + p["run"] + fmt.Sprint(r.Tokens)
		}
		p = maps.Clone(reference)
		p["model"], p["tokens"] = r.Params["model"], fmt.Sprint(r.Tokens)
	}
	var words []string
	for _, name := range sortedKeys(reference) {
		words = append(words, name+"="+p[name])
	}
	return strings.Join(words, " ")
}

// commonStep is the key of the reference, if some device has it, else of the step that most devices have.
func commonStep(files []*result.File) string {
	wanted := stepKey(result.Row{Params: reference})
	devices := map[string]map[string]bool{}
	for _, f := range files {
		for _, s := range Steps(f) {
			key := stepKey(s.Row)
			if devices[key] == nil {
				devices[key] = map[string]bool{}
			}
			devices[key][f.Environment.Device()] = true
		}
	}
	if len(devices[wanted]) > 0 {
		return wanted
	}
	best := ""
	for _, key := range sortedKeys(devices) {
		if best == "" || len(devices[key]) > len(devices[best]) {
			best = key
		}
	}
	return best
}

func measuredCard(device string, e result.Environment, s *Step, job result.Row) Card {
	c := Card{Device: device, Step: s, Remark: "measured"}
	c.Known, _ = CardOf(e.Card)
	if c.Memory = int64(c.Known.GiB * (1 << 30)); e.Card != nil && e.Card.Memory > 0 {
		c.Memory = e.Card.Memory
	}
	if s != nil {
		c.Tokens = s.Tokens
		if s.Joules > 0 {
			c.PerWatt = 1 / s.Joules
		}
	}
	if len(job.Seconds) > 0 {
		c.Job = job.Seconds[0]
		_, c.JobMemory = memoryOf(job)
	}
	return c
}

// described is a step with all its parameters: rows of schema 1 tell model and tokens alone.
func described(s Step) result.Row {
	r := s.Row
	if r.Params["run"] != "" {
		r.Params = maps.Clone(reference)
		r.Params["model"], r.Params["tokens"] = s.Model, fmt.Sprint(r.Tokens)
	}
	return r
}

// predict fills in the error of predictions for the cards measured, and adds the others.
func (c *Cards) predict(p Predictor) {
	have := map[string]bool{}
	found := false
	for i := range c.Cards {
		m := &c.Cards[i]
		if m.Step == nil {
			continue
		}
		if !found {
			c.Row, found = described(*m.Step), true
		}
		have[m.Known.Name] = true
		if p == nil || m.Known.Name == "" {
			continue
		}
		if seconds, _, err := p.Predict(described(*m.Step), m.Known); err == nil {
			m.Error = seconds/m.Step.Median - 1
		}
	}
	if p == nil || !found {
		return
	}
	var others []Card
	for _, name := range plan.CardNames() {
		known, err := plan.CardNamed(name)
		if err != nil || have[name] {
			continue
		}
		n := Card{Device: known.Title, Known: known, Memory: int64(known.GiB * (1 << 30)), Predicted: true, Remark: "prediction"}
		var no *plan.NoFit
		seconds, how, err := p.Predict(c.Row, known)
		switch {
		case errors.As(err, &no):
			n.Remark = "does not fit"
		case err != nil:
			continue
		default:
			n.Seconds, n.Tokens = seconds, float64(c.Row.Tokens)/seconds
			if how != "" {
				n.Remark += ", with " + how
			}
		}
		others = append(others, n)
	}
	slices.SortStableFunc(others, func(a, b Card) int { return cmp.Compare(b.Tokens, a.Tokens) })
	c.Cards = append(c.Cards, others...)
}

// compareKernels compares each card's kernels with those of the first card that has any.
func (c *Cards) compareKernels(kernels map[string]*result.File) {
	var order []string
	for _, m := range c.Cards {
		if kernels[m.Device] != nil {
			order = append(order, m.Device)
		}
	}
	if len(order) < 2 {
		return
	}
	c.First = order[0]
	for _, device := range order[1:] {
		r, err := compare.Files([]*result.File{kernels[device]}, []*result.File{kernels[c.First]}, compare.Options{AnyDevice: true})
		if err != nil {
			continue
		}
		for _, l := range r.Lines {
			if !strings.Contains(l.Key, "cache=hot") {
				continue
			}
			// Seconds alone: the clock is a part of the card.
			v := l.Test.Verdict(stat.Margin)
			c.Kernels = append(c.Kernels, KernelRatio{device, strings.TrimPrefix(l.Key, "kernels "), l.Test.Ratio, l.Test.Lo, l.Test.Hi, v == stat.Slower || v == stat.Faster})
		}
	}
}

// Grids are the tables of the comparison.
func (c Cards) Grids() []Grid {
	g := Grid{Title: "Cards: " + c.title(), Head: []string{"card", "memory", "tokens/s", "step", "tokens/s per W", "memory used", "the article's job", "remark"}, Left: 1}
	for _, m := range c.Cards {
		tokens, step, used, remark := count(m.Tokens), dash, dash, m.Remark
		if m.Step != nil {
			step, used = seconds(m.Step.Median), gib(max(m.Step.Process, m.Step.Arena))
		}
		if m.Predicted && m.Seconds > 0 {
			tokens, step = "~ "+tokens, "~ "+seconds(m.Seconds)
		} else if m.Error != 0 {
			remark += "; the prediction: " + difference(1+m.Error)
		}
		g.add(m.Device, gib(m.Memory), tokens, step, amount(m.PerWatt), used, seconds(m.Job), remark)
	}
	g.Note = "~ is a prediction, as of `qlora plan`: a roofline, op by op, at the shares of the peak that were measured. The article: RTX 4090D, 24 GB, 5 min 45 s (load, tokenise, train, save), 21.74 GB."
	all := []Grid{g}
	if len(c.Kernels) > 0 {
		k := Grid{Title: "Kernels: how many times as fast the " + c.First + " is", Head: []string{"card", "kernel", "times", "95 % interval", "significant"}, Left: 2}
		for _, r := range c.Kernels {
			k.add(r.Device, r.Kernel, digits(1/r.Ratio, 3), digits(1/r.Hi, 3)+" .. "+digits(1/r.Lo, 3), map[bool]string{true: "yes", false: "no"}[r.Significant])
		}
		k.Note = "Mann-Whitney U, corrected by Holm for all kernels of the card."
		all = append(all, k)
	}
	return all
}

func (c Cards) title() string {
	for _, m := range c.Cards {
		if m.Step != nil {
			r := described(*m.Step)
			return fmt.Sprintf("a training step of %s, %s, %s tokens", model(r.Params["model"]), method(r), shapeText(r))
		}
	}
	return "no step was measured"
}

// fastest is the largest rate of tokens among the cards.
func (c Cards) fastest() float64 {
	most := 0.0
	for _, m := range c.Cards {
		most = math.Max(most, m.Tokens)
	}
	return most
}
