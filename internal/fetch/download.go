package fetch

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"qlora/internal/atomicfile"
)

// Progress is how many bytes are there, how many of them came in this run, and how many there will be.
type Progress struct{ There, Came, Total int64 }

// Get brings the files of a repository into its folder of a hub's cache, and returns the folder that holds them under
// their names. What is there already is not fetched again. progress may be nil.
func (c *Client) Get(ctx context.Context, r *Repo, files []File, progress func(Progress)) (string, error) {
	p, err := newPlace(r)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(p.blobs, 0o777); err != nil {
		return "", err
	}
	job := &job{Client: c, repo: r, place: p, show: progress}
	var missing []File
	for _, f := range files {
		job.at.Total += f.Size
		switch info, err := os.Stat(p.blob(f)); {
		case err == nil && info.Size() == f.Size:
			job.at.There += f.Size
		case err == nil || errors.Is(err, os.ErrNotExist):
			missing = append(missing, f)
		default:
			return "", err
		}
	}
	if err := job.room(missing); err != nil {
		return "", err
	}
	if err := job.all(ctx, missing); err != nil {
		return "", err
	}
	return p.snapshot, p.finish(r, files)
}

// job is one Get.
type job struct {
	*Client
	repo  *Repo
	place *place
	show  func(Progress)
	mu    sync.Mutex
	at    Progress
}

// add counts bytes that are there, or are thrown away; came says how many of them came over the network.
func (j *job) add(n, came int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.at.There, j.at.Came = j.at.There+n, j.at.Came+came
	if j.show != nil {
		j.show(j.at)
	}
}

// room refuses what the disk does not hold, before the first byte.
func (j *job) room(missing []File) error {
	var need int64
	for _, f := range missing {
		need += f.Size
		if info, err := os.Stat(j.place.partial(f)); err == nil {
			need -= min(info.Size(), f.Size)
		}
	}
	free, err := atomicfile.Free(j.place.blobs)
	if err != nil {
		return err
	}
	if need > free {
		return fmt.Errorf("%s needs %.2f GB more, and the disk of %s has %.2f GB free (HF_HOME or MODELSCOPE_CACHE moves the cache): %w",
			j.repo.ID, float64(need)/1e9, j.place.blobs, float64(free)/1e9, syscall.ENOSPC)
	}
	return nil
}

// all fetches files, several at a time. The first error ends the others.
func (j *job) all(ctx context.Context, files []File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan File)
	var wait sync.WaitGroup
	for range max(1, min(j.Workers, len(files))) {
		wait.Go(func() {
			for f := range next {
				if err := j.file(ctx, f); err != nil {
					cancel(fmt.Errorf("%s: %w", f.Path, err))
				}
			}
		})
	}
	for _, f := range files {
		select {
		case next <- f:
		case <-ctx.Done():
		}
	}
	close(next)
	wait.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// file fetches one file: into its partial file, from where that ends, and then, checked, to its name.
func (j *job) file(ctx context.Context, f File) error {
	path := j.place.partial(f)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	part, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer part.Close()
	if err := unix.Flock(int(part.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another program is fetching it (%s is locked): wait for that one", path)
	}
	d := &download{job: j, file: f, part: part}
	if err := d.begin(); err != nil {
		return err
	}
	again := false // the bytes were wrong once
	err = j.retry(ctx, func() (bool, error) {
		progress, err := d.more(ctx)
		if err != nil || d.have < f.Size {
			return progress, err
		}
		if f.hash() == "" {
			d.Log("%s: the hub lists no hash, so only its size was checked", f.Path)
			return true, nil
		}
		if got := d.sum(); got != f.hash() {
			wrong := fmt.Errorf("%d bytes came whose hash is %.12s, and the hub lists %.12s", d.have, got, f.hash())
			if err := d.restart(); err != nil {
				return false, final(err)
			}
			if again {
				return false, final(fmt.Errorf("%w, twice: the hub, or something between here and it, gives another file", wrong))
			}
			again = true
			return false, wrong
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if err := errors.Join(part.Sync(), part.Chmod(0o644)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(j.place.blob(f)), 0o777); err != nil {
		return err
	}
	return os.Rename(path, j.place.blob(f))
}

// download is a file of which some bytes are there.
type download struct {
	*job
	file File
	part *os.File
	have int64
	hash hash.Hash
}

// newHash begins the hash that the file is checked by. Git's is over a header too.
func (d *download) newHash() {
	if d.file.SHA256 != "" {
		d.hash = sha256.New()
		return
	}
	d.hash = sha1.New()
	fmt.Fprintf(d.hash, "blob %d\x00", d.file.Size)
}

func (d *download) sum() string { return hex.EncodeToString(d.hash.Sum(nil)) }

// begin takes up what an earlier run has left.
func (d *download) begin() error {
	info, err := d.part.Stat()
	if err != nil {
		return err
	}
	d.newHash()
	if info.Size() > d.file.Size {
		return d.restart()
	}
	if d.have, err = io.Copy(d.hash, d.part); err != nil {
		return err
	}
	d.add(d.have, 0)
	return nil
}

// restart throws away what is there.
func (d *download) restart() error {
	d.add(-d.have, 0)
	d.have = 0
	d.newHash()
	if err := d.part.Truncate(0); err != nil {
		return err
	}
	_, err := d.part.Seek(0, io.SeekStart)
	return err
}

// more asks for the rest of the file and takes what comes of it. It reports whether anything came.
func (d *download) more(ctx context.Context) (progress bool, err error) {
	f := d.file
	if d.have == f.Size {
		return false, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(d.Stall, func() { cancel(fmt.Errorf("nothing came for %v", d.Stall)) })
	defer stalled.Stop()
	site := d.HF
	if d.repo.Hub == ModelScope {
		site = d.MS
	}
	address := d.address(d.repo, f)
	resp, err := d.get(ctx, site, address, d.have)
	if err != nil {
		return false, orCause(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && d.have > 0:
		var from, to, of int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &of); n != 3 || from != d.have || of != f.Size {
			err := fmt.Errorf("the bytes from %d of %d on were asked for, and %q came", d.have, f.Size, resp.Header.Get("Content-Range"))
			return false, errors.Join(err, d.restart())
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && d.have > 0:
		return false, errors.Join(errors.New("the hub does not go on from where the file was cut off"), d.restart())
	case resp.StatusCode == http.StatusOK:
		if err := d.restart(); err != nil {
			return false, final(err)
		}
	default:
		return false, statusError(resp)
	}
	if webPage(resp) && !strings.HasSuffix(f.Path, ".html") && !strings.HasSuffix(f.Path, ".htm") {
		return false, final(fmt.Errorf("%s answers with a web page in place of the file: is something between here and the hub that wants a login?", resp.Request.URL.Host))
	}
	if n := resp.ContentLength; n >= 0 && n != f.Size-d.have {
		return false, final(fmt.Errorf("%s announces %d bytes, and the hub lists %d: one of them is wrong", resp.Request.URL.Host, d.have+n, f.Size))
	}
	return d.take(ctx, resp.Body, stalled)
}

// take reads a body into the partial file.
func (d *download) take(ctx context.Context, body io.Reader, stalled *time.Timer) (progress bool, err error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			stalled.Reset(d.Stall)
			if d.have+int64(n) > d.file.Size {
				return true, final(fmt.Errorf("more than the %d bytes came that the hub lists", d.file.Size))
			}
			if _, err := d.part.Write(buf[:n]); err != nil {
				return true, final(err)
			}
			d.hash.Write(buf[:n])
			d.have += int64(n)
			d.add(int64(n), int64(n))
			progress = true
		}
		switch {
		case errors.Is(err, io.EOF) && d.have == d.file.Size:
			return true, nil
		case errors.Is(err, io.EOF):
			return progress, fmt.Errorf("the connection ended at %d of %d bytes", d.have, d.file.Size)
		case err != nil:
			return progress, fmt.Errorf("at %d of %d bytes: %w", d.have, d.file.Size, orCause(ctx, err))
		}
	}
}

// orCause is why ctx was cancelled, where that is the reason of an error.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
