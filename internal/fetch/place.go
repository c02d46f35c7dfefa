package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"

	"qlora/internal/atomicfile"
	"qlora/internal/hubcache"
)

// place is where a repository lies in a hub's cache.
//
//	Hugging Face   models--org--name/blobs/HASH, snapshots/COMMIT/PATH -> ../../blobs/HASH, refs/REVISION
//	ModelScope     hub/models/org/name/PATH, with ___ for each dot of the name
type place struct {
	snapshot string // the files under their names
	blobs    string // a folder on the same disk
	refs     string // "" of ModelScope
	plain    bool   // files lie under their names, not as links
}

// incomplete is the folder that files of ModelScope grow in.
const incomplete = "._incomplete"

// cacheOf is the folder of a hub's cache.
func cacheOf(hub Hub) (string, error) {
	if hub == ModelScope {
		return hubcache.ModelScopeDir()
	}
	return hubcache.HuggingFaceDir()
}

func newPlace(r *Repo) (*place, error) {
	cache, err := cacheOf(r.Hub)
	if err != nil {
		return nil, err
	}
	kind := hubcache.Models
	if r.Dataset {
		kind = hubcache.Datasets
	}
	if r.Hub == ModelScope {
		dir := hubcache.ModelScopeRepo(kind, cache, r.ID)
		return &place{snapshot: dir, blobs: dir, plain: true}, nil
	}
	repo := hubcache.HuggingFaceRepo(kind, cache, r.ID)
	return &place{snapshot: filepath.Join(repo, "snapshots", r.Commit), blobs: filepath.Join(repo, "blobs"), refs: filepath.Join(repo, "refs")}, nil
}

// blob is where a file's content lies.
func (p *place) blob(f File) string {
	if p.plain {
		return filepath.Join(p.snapshot, filepath.FromSlash(f.Path))
	}
	return filepath.Join(p.blobs, f.hash())
}

// partial is where it grows.
func (p *place) partial(f File) string {
	if p.plain {
		name := sha256.Sum256([]byte(f.Path + "\x00" + f.hash()))
		return filepath.Join(p.blobs, incomplete, hex.EncodeToString(name[:]))
	}
	return p.blob(f) + ".incomplete"
}

// finish gives the files their names, and says last of all that the revision is this commit: a reader finds all files of
// it, or the commit before.
func (p *place) finish(r *Repo, files []File) error {
	if p.plain {
		_ = os.Remove(filepath.Join(p.blobs, incomplete)) // empty, unless another run is at it
		return nil
	}
	for _, f := range files {
		link := filepath.Join(p.snapshot, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(link), 0o777); err != nil {
			return err
		}
		target, err := filepath.Rel(filepath.Dir(link), p.blob(f))
		if err != nil {
			return err
		}
		if old, err := os.Readlink(link); err == nil && old == target {
			continue
		}
		tmp := atomicfile.TempPath(link)
		if err := errors.Join(removed(tmp), os.Symlink(target, tmp)); err != nil {
			return err
		}
		if err := os.Rename(tmp, link); err != nil {
			return err
		}
	}
	if r.Revision == r.Commit {
		return nil
	}
	ref := filepath.Join(p.refs, filepath.FromSlash(r.Revision))
	if err := os.MkdirAll(filepath.Dir(ref), 0o777); err != nil {
		return err
	}
	return atomicfile.WriteBytes(ref, []byte(r.Commit))
}

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
