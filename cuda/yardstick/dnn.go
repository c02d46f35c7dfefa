//go:build cuda

package yardstick

/*
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

// The entry points of cuDNN's graph interface, as its documentation has them; an int is a cudnnStatus_t.
typedef struct {
  int (*create)(void **);
  int (*destroy)(void *);
  int (*stream)(void *, void *);
  size_t (*version)(void);
  size_t (*runtime)(void);
  void (*why)(char *, size_t);
  int (*make)(int, void **);
  int (*free)(void *);
  int (*set)(void *, int, int, int64_t, const void *);
  int (*get)(void *, int, int, int64_t, int64_t *, void *);
  int (*finalize)(void *);
  int (*execute)(void *, void *, void *);
} dnn;

static int dnn_find(void *so, dnn *d) {
  d->create = (int (*)(void **))dlsym(so, "cudnnCreate");
  d->destroy = (int (*)(void *))dlsym(so, "cudnnDestroy");
  d->stream = (int (*)(void *, void *))dlsym(so, "cudnnSetStream");
  d->version = (size_t (*)(void))dlsym(so, "cudnnGetVersion");
  d->runtime = (size_t (*)(void))dlsym(so, "cudnnGetCudartVersion");
  d->why = (void (*)(char *, size_t))dlsym(so, "cudnnGetLastErrorString");
  d->make = (int (*)(int, void **))dlsym(so, "cudnnBackendCreateDescriptor");
  d->free = (int (*)(void *))dlsym(so, "cudnnBackendDestroyDescriptor");
  d->set = (int (*)(void *, int, int, int64_t, const void *))dlsym(so, "cudnnBackendSetAttribute");
  d->get = (int (*)(void *, int, int, int64_t, int64_t *, void *))dlsym(so, "cudnnBackendGetAttribute");
  d->finalize = (int (*)(void *))dlsym(so, "cudnnBackendFinalize");
  d->execute = (int (*)(void *, void *, void *))dlsym(so, "cudnnBackendExecute");
  return d->create && d->destroy && d->stream && d->version && d->runtime && d->why && d->make && d->free && d->set && d->get && d->finalize &&
         d->execute;
}

// Descriptors are numbers to Go: memory of cuDNN's, nothing that its collector may see.
typedef uintptr_t ref;
static int dnn_create(dnn *d, ref *handle, ref stream) {
  int status = d->create((void **)handle);
  return status ? status : d->stream((void *)*handle, (void *)stream);
}
static int dnn_destroy(dnn *d, ref handle) { return d->destroy((void *)handle); }
static size_t dnn_version(dnn *d) { return d->version(); }
static size_t dnn_runtime(dnn *d) { return d->runtime(); }
static void dnn_why(dnn *d, char *text, size_t n) { d->why(text, n); }
static int dnn_make(dnn *d, int kind, ref *r) { return d->make(kind, (void **)r); }
static int dnn_free(dnn *d, ref r) { return d->free((void *)r); }
static int dnn_set(dnn *d, ref r, int name, int type, int64_t n, const void *values) { return d->set((void *)r, name, type, n, values); }
static int dnn_finalize(dnn *d, ref r) { return d->finalize((void *)r); }
static int dnn_execute(dnn *d, ref handle, ref plan, ref pack) { return d->execute((void *)handle, (void *)plan, (void *)pack); }

// What is asked for stands in n values, of which *got are there.
static int dnn_get(dnn *d, ref r, int name, int type, int64_t n, int64_t *got, void *values) {
  return d->get((void *)r, name, type, n, got, values);
}
*/
import "C"

import (
	"errors"
	"fmt"
	"strconv"
	"unsafe"
)

// DNN is an opened cuDNN. Its methods are called with the card's context current.
type DNN struct {
	find    C.dnn
	handle  C.ref
	version int
}

// leastDNN fills what it adds to with zeros itself: older ones leave that to their caller.
const leastDNN = 90600

// OpenDNN opens cuDNN where it can be found: the path in CUDNN, the system's libraries, /usr/local/cuda, or the wheels of a
// Python. Its work goes to a stream.
func OpenDNN(stream uintptr) (*DNN, error) {
	d, err := findDNN()
	if err != nil {
		return nil, err
	}
	if err := d.check("cudnnCreate", C.dnn_create(&d.find, &d.handle, C.ref(stream))); err != nil {
		return nil, err
	}
	return d, nil
}

func findDNN() (*DNN, error) {
	so, err := open("CUDNN", "libcudnn.so", []string{"9"})
	if err != nil {
		return nil, err
	}
	d := &DNN{}
	if C.dnn_find(so, &d.find) == 0 {
		return nil, errors.New("yardstick: cuDNN lacks an entry point that version 9 has")
	}
	if d.version = int(C.dnn_version(&d.find)); d.version < leastDNN {
		return nil, fmt.Errorf("%s is too old to compare with: 9.6 or newer", d.Name())
	}
	// It ends the program where it needs cuBLASLt, and finds none.
	if _, err := open("CUBLASLT", "libcublasLt.so", []string{strconv.Itoa(int(C.dnn_runtime(&d.find)) / 1000)}); err != nil {
		return nil, fmt.Errorf("%s needs another library: %w", d.Name(), err)
	}
	return d, nil
}

// Name is "cuDNN 9.10".
func (d *DNN) Name() string { return fmt.Sprintf("cuDNN %d.%d", d.version/10000, d.version/100%100) }

// Close ends the use of cuDNN. The library stays open, like cuBLAS.
func (d *DNN) Close() error { return d.check("cudnnDestroy", C.dnn_destroy(&d.find, d.handle)) }

// check makes an error of a status.
func (d *DNN) check(what string, status C.int) error {
	if status == 0 {
		return nil
	}
	var why [512]C.char
	C.dnn_why(&d.find, &why[0], C.size_t(len(why)-1))
	return fmt.Errorf("yardstick: %s: %s: status %d (%s)", d.Name(), what, status, C.GoString(&why[0]))
}

// ref is a descriptor of cuDNN's: memory of its own.
type ref uintptr

// value is what an attribute of a descriptor is set to. Names and types are numbers of cudnn_graph.h.
type value struct {
	name, kind C.int
	n          int
	data       unsafe.Pointer
}

// Types of values.
const (
	ofHandle     = 0
	ofDataType   = 1
	ofBool       = 2
	ofInt64      = 3
	ofPointer    = 6
	ofHeuristic  = 8
	ofPointwise  = 14
	ofDescriptor = 15
	ofReduction  = 18
)

// attribute is one value or more.
func attribute[T any](name, kind int, v ...T) value {
	return value{C.int(name), C.int(kind), len(v), unsafe.Pointer(unsafe.SliceData(v))}
}

// maker makes descriptors until one fails.
type maker struct {
	d    *DNN
	made []ref
	err  error
}

// make makes a descriptor of a kind and finalizes it.
func (m *maker) make(what string, kind int, values ...value) ref {
	r := m.open(what, kind)
	for _, v := range values {
		if m.err == nil {
			m.err = m.d.check(fmt.Sprintf("%s, attribute %d", what, v.name), C.dnn_set(&m.d.find, C.ref(r), v.name, v.kind, C.int64_t(v.n), v.data))
		}
	}
	if m.err == nil {
		m.err = m.d.check(what, C.dnn_finalize(&m.d.find, C.ref(r)))
	}
	return r
}

// open makes a descriptor that cuDNN fills.
func (m *maker) open(what string, kind int) ref {
	var r C.ref
	if m.err == nil {
		m.err = m.d.check(what, C.dnn_make(&m.d.find, C.int(kind), &r))
	}
	if m.err == nil {
		m.made = append(m.made, ref(r))
	}
	return ref(r)
}

// get reads an attribute into as many values as there is room for, and says how many there are.
func get[T any](m *maker, what string, r ref, name, kind int, into []T) int {
	var got C.int64_t
	if m.err == nil {
		m.err = m.d.check(what, C.dnn_get(&m.d.find, C.ref(r), C.int(name), C.int(kind), C.int64_t(len(into)), &got, unsafe.Pointer(unsafe.SliceData(into))))
	}
	return int(got)
}

// free gives all back, the last first.
func (m *maker) free() {
	for i := len(m.made) - 1; i >= 0; i-- {
		C.dnn_free(&m.d.find, C.ref(m.made[i])) // nothing can be done about a failure
	}
	m.made = nil
}

// user is the attribute that names the handle a descriptor is for.
func (d *DNN) user(name int) value { return attribute(name, ofHandle, uintptr(d.handle)) }

func (d *DNN) execute(plan, pack ref) error {
	return d.check("cudnnBackendExecute", C.dnn_execute(&d.find, d.handle, C.ref(plan), C.ref(pack)))
}

// number is a float32 where cuDNN may read it later.
func number(v float32) unsafe.Pointer {
	p := C.malloc(4)
	*(*float32)(p) = v
	return p
}

// forget gives a number's memory back.
func forget(p unsafe.Pointer) { C.free(p) }
