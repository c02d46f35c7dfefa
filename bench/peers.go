package bench

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"qlora/bench/result"
	"qlora/model/ops"
)

//go:embed peers.py
var peersScript []byte

// Peer is another trainer and the cases it is given: rows x tokens, c where it recomputes activations.
type Peer struct {
	Trainer string
	Cases   []string
	Limit   time.Duration
}

// AllPeers are the trainers that peers.py knows, those people use most first. Unsloth takes one kind of recomputing a
// process.
var AllPeers = []Peer{
	{"unsloth", []string{"1x2048", "2x2048"}, 130 * time.Second},
	{"unsloth-nf4", []string{"1x2048", "2x2048"}, 130 * time.Second},
	{"peft-nf4", []string{"1x2048", "1x2048c", "2x2048c"}, 130 * time.Second},
	{"peft", []string{"1x2048", "1x2048c"}, 100 * time.Second},
	{"peft-liger", []string{"1x2048", "1x2048c"}, 100 * time.Second},
	{"peft-compile", []string{"1x2048"}, 200 * time.Second},
	{"unsloth-nf4", []string{"1x2048c", "2x2048c"}, 130 * time.Second},
	{"unsloth", []string{"1x2048c", "2x2048c"}, 130 * time.Second},
}

// PeersOptions are a run of peers beside ours.
type PeersOptions struct {
	Python  string // interpreter that has torch
	Model   string // folder of the weights, random ones: other trainers read them
	Name    string // of the shape
	Peers   []Peer
	Ours    []Training // on the same shape, measured first
	Rank    int
	Steps   int
	Device  string        // cuda, or cpu in tests
	Budget  time.Duration // peers that do not fit in it are left out, and named; 0: none
	Load    func(done, total int64)
	Scratch string // for logs and caches
}

// Peers measures our steps and then those of other trainers on the same device, weights and shapes, each in a process of
// its own. What does not run is a row with the reason.
func (b *Bench) Peers(ctx context.Context, o PeersOptions) (*result.File, error) {
	s := b.start()
	var rows []result.Row
	var err error
	for _, t := range o.Ours {
		if err = b.fresh(s); err != nil {
			break
		}
		b.say("step: qlora, %d tokens", t.Tokens*t.Rows)
		var row result.Row
		row, err = b.step(ctx, s, t, StepOptions{Progress: o.Load})
		name := map[bool]string{true: "qlora-nf4", false: "qlora"}[t.DType == ops.NF4]
		if row.Params = peerParams(name, t.Name, t.Segments*t.Rows, t.Tokens/t.Segments, false); len(row.Seconds) > 0 || row.Error != "" {
			rows = append(rows, row)
		}
		if doesNotFit(err) {
			err = nil
		}
		if err != nil {
			break
		}
	}
	if err == nil { // ours gives the device up
		err = b.reopen(s)
	}
	for _, p := range o.Peers {
		if err != nil {
			break
		}
		if err = ctx.Err(); err != nil {
			break
		}
		left := p.Limit
		if o.Budget > 0 {
			left = min(left, o.Budget-time.Since(b.begun))
		}
		if left < 10*time.Second && o.Budget > 0 {
			rows = append(rows, failedPeer(p, o.Name, "left out: the time given to all peers is over")...)
			continue
		}
		b.say("step: %s, %s", p.Trainer, strings.Join(p.Cases, ", "))
		rows = append(rows, o.peer(ctx, p, left)...)
	}
	return b.finish(result.Peers, rows, nil), err
}

func peerParams(trainer, model string, rows, tokens int, recomputes bool) map[string]string {
	return map[string]string{"trainer": trainer, "model": model, "rows": strconv.Itoa(rows), "tokens": strconv.Itoa(tokens), "checkpointing": map[bool]string{true: "yes", false: "no"}[recomputes]}
}

// peerLine is a line of peers.py.
type peerLine struct {
	Rows          int               `json:"rows"`
	Tokens        int               `json:"tokens"`
	Checkpointing bool              `json:"checkpointing"`
	Seconds       result.Samples    `json:"seconds"`
	First         float64           `json:"first"`
	Bytes         int64             `json:"bytes"`
	Versions      map[string]string `json:"versions"`
	Error         string            `json:"error"`
}

// peer runs one trainer.
func (o PeersOptions) peer(ctx context.Context, p Peer, limit time.Duration) []result.Row {
	out, err := o.python(ctx, p, limit)
	lines, said := parsePeer(out)
	var rows []result.Row
	seen := map[string]bool{}
	for _, l := range lines {
		row := result.Row{Name: "step", Params: peerParams(p.Trainer, o.Name, l.Rows, l.Tokens, l.Checkpointing), Seconds: l.Seconds, Tokens: l.Rows * l.Tokens, Labels: l.Rows * (l.Tokens - 1), Error: l.Error}
		if l.Bytes > 0 {
			row.Memory = []result.Memory{{Category: result.MemoryProcess, Measured: l.Bytes}}
		}
		if l.First > 0 {
			row.Params["first"] = strconv.FormatFloat(l.First, 'f', 1, 64) + " s"
		}
		for name, v := range l.Versions {
			row.Params[name] = v
		}
		if len(row.Seconds) == 0 && row.Error == "" {
			row.Error = "no times came"
		}
		seen[caseText(l)] = true
		rows = append(rows, row)
	}
	why := said
	if why == "" && err != nil {
		why = err.Error()
	}
	if why == "" {
		why = "no line came for it"
	}
	var missing []string
	for _, c := range p.Cases {
		if !seen[c] {
			missing = append(missing, c)
		}
	}
	return append(rows, failedPeer(Peer{Trainer: p.Trainer, Cases: missing}, o.Name, why)...)
}

func caseText(l peerLine) string {
	c := fmt.Sprintf("%dx%d", l.Rows, l.Tokens)
	if l.Checkpointing {
		c += "c"
	}
	return c
}

// failedPeer are rows for cases without times.
func failedPeer(p Peer, model, why string) []result.Row {
	var rows []result.Row
	for _, c := range p.Cases {
		shape, recomputes := strings.CutSuffix(c, "c")
		n, tokens, _ := strings.Cut(shape, "x")
		a, _ := strconv.Atoi(n)
		b, _ := strconv.Atoi(tokens)
		rows = append(rows, result.Row{Name: "step", Params: peerParams(p.Trainer, model, a, b, recomputes), Error: why})
	}
	return rows
}

// parsePeer reads what a trainer printed; said is why it did not start.
func parsePeer(out []byte) (lines []peerLine, said string) {
	for scan := bufio.NewScanner(bytes.NewReader(out)); scan.Scan(); {
		var l peerLine
		if !bytes.HasPrefix(scan.Bytes(), []byte("{")) || json.Unmarshal(scan.Bytes(), &l) != nil {
			continue // a library's own words
		}
		if l.Rows == 0 {
			said = l.Error
			continue
		}
		lines = append(lines, l)
	}
	return lines, said
}

// python runs peers.py in a process group of its own, which ends with it: some trainers leave workers behind.
func (o PeersOptions) python(ctx context.Context, p Peer, limit time.Duration) ([]byte, error) {
	script := filepath.Join(o.Scratch, "peers.py")
	if err := os.WriteFile(script, peersScript, 0o666); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.Scratch, p.Trainer+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.Python, script, "--trainer", p.Trainer, "--model", o.Model, "--cases", strings.Join(p.Cases, ","),
		"--rank", strconv.Itoa(o.Rank), "--steps", strconv.Itoa(o.Steps), "--device", o.Device)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = io.MultiWriter(&out, log), log, o.Scratch
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "HF_DATASETS_OFFLINE=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1",
		"UNSLOTH_DISABLE_STATISTICS=1", "TOKENIZERS_PARALLELISM=false", "PYTHONUNBUFFERED=1", "UNSLOTH_COMPILE_LOCATION="+filepath.Join(o.Scratch, "unsloth"),
		"TORCHINDUCTOR_CACHE_DIR="+filepath.Join(o.Scratch, "inductor"), "TRITON_CACHE_DIR="+filepath.Join(o.Scratch, "triton"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // workers left behind; none is no error
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("not done after %s", limit.Round(time.Second))
	}
	return out.Bytes(), err
}

// HasTorch says what of torch an interpreter has: its version, or why not.
func HasTorch(ctx context.Context, python string) (string, error) {
	cmd := exec.CommandContext(ctx, python, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())")
	out, err := cmd.Output()
	if err == nil {
		return strings.TrimSpace(string(out)), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		lines := strings.Split(strings.TrimSpace(string(exit.Stderr)), "\n")
		err = errors.New(lines[len(lines)-1])
	}
	return "", err
}
