package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"qlora/internal/atomicfile"
	"qlora/model/data"
	"qlora/model/train"
)

// folder chooses the run's folder, and returns the checkpoint to go on from: "" for none.
func (c *sftCmd) folder(run *train.Run) (from string, err error) {
	if c.ResumeFromCheckpoint != "" {
		if from, err = newestCheckpoint(c.ResumeFromCheckpoint); err != nil {
			return "", err
		}
		run.Dir = filepath.Dir(from)
		return from, nil
	}
	output := cmp.Or(c.OutputDir, filepath.Join("output", filepath.Base(run.Base.Name)))
	if c.AddVersion {
		run.Dir, err = train.NewDir(output, time.Now())
		return "", err
	}
	steps, err := train.Checkpoints(output)
	if err == nil && len(steps) > 0 {
		err = usageError{fmt.Errorf("--output_dir %s holds the checkpoints of another run: choose another, or leave out --add_version false", output)}
	}
	run.Dir = output
	return "", err
}

// newestCheckpoint returns dir, or where dir is a run's folder its last checkpoint.
func newestCheckpoint(dir string) (string, error) {
	dir = filepath.Clean(dir)
	if _, err := os.Stat(dir); err != nil {
		return "", usageError{fmt.Errorf("--resume_from_checkpoint: %w", err)}
	}
	steps, err := train.Checkpoints(dir)
	if err != nil || len(steps) == 0 {
		return dir, err
	}
	return filepath.Join(dir, fmt.Sprintf("checkpoint-%d", steps[len(steps)-1])), nil
}

// keepConfig copies the configuration file into the run's folder. Of an args.json the run writes its
// own, which says the same and what the command line changed.
func keepConfig(e *env, dir string) error {
	name := filepath.Base(e.config)
	if e.config == "" || name == train.ArgsName {
		return nil
	}
	text, err := readLimited(e.config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(dir, name), text)
}

// setAsideName is ms-swift's name for the rows that --split_dataset_ratio set aside.
const setAsideName = "val_dataset.jsonl"

// keepSetAside writes the rows that are set aside for validation into the run's folder: what `qlora eval` can measure on later.
func (c *sftCmd) keepSetAside(dir string, b *base) error {
	opt, err := c.dataOptions(b)
	if err != nil || opt.SplitRatio == 0 {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, setAsideName), func(w io.Writer) error {
		for ex, err := range data.SetAside(c.Dataset, opt) {
			var fault *data.RowError
			if errors.As(err, &fault) {
				continue // said when it was loaded
			}
			var row []byte
			if err == nil {
				row, err = ex.JSON()
			}
			if err == nil {
				_, err = w.Write(append(row, '\n'))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// linkCheckpoints makes the links last and best in a run's folder, in place of older ones. They are
// relative, so that the folder can be moved.
func linkCheckpoints(dir string, r train.Result) error {
	for name, checkpoint := range map[string]string{"last": r.Last, "best": r.Best} {
		if checkpoint == "" {
			continue
		}
		if err := atomicfile.Symlink(filepath.Base(checkpoint), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
