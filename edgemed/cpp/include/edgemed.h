/* edgemed: classify images with a bundle from `edgemed build-engine`, from C, with the answers that Python gives.
 *
 *     edgemed_options options = edgemed_options_default();
 *     edgemed_model* model = NULL;
 *     if (edgemed_open("bundle", &options, &model) != EDGEMED_OK) {
 *         fprintf(stderr, "%s\n", edgemed_last_error());
 *         return 1;
 *     }
 *     float probabilities[16];                            // one per label: check edgemed_label_count(model)
 *     edgemed_decision decision;
 *     edgemed_outputs outputs = {.probabilities = probabilities, .decisions = &decision};
 *     edgemed_image frame = {.data = pixels, .height = 480, .width = 640, .stride = 0, .format = EDGEMED_BGR};
 *     if (edgemed_predict(model, &frame, 1, &outputs) == EDGEMED_OK)
 *         puts(edgemed_decision_name(model, decision.decision));
 *     edgemed_close(model);
 *
 * Threads: a handle serves one thread at a time; give each thread its own `edgemed_clone`, which shares the engine.
 * A forked process has to open for itself: the runtime's threads stay with its parent, and a handle would wait for them.
 * Handles, clones and threads may otherwise be mixed freely, and closed in any order. With OpenVINO, clones take turns
 * on all cores, which is the shortest latency.
 * Memory: the caller owns every buffer that it passes; none is kept after a call returns, but `warn` and `user` have to
 * live until the last handle and clone are closed: later calls warn too, from any thread that makes them. After the
 * first call of a shape, predicting allocates nothing in this library. OpenVINO and the decoders of PNG and JPEG take
 * some for themselves and give it back, but for the last 1,024 kernels that OpenVINO made: images of ever new sizes
 * make new ones (ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 in the environment keeps fewer). Strings that it gives belong to
 * the handle and live as long.
 * Errors: a function that can fail returns a status; the text is in `edgemed_last_error`, one line that says what
 * failed and what to do. No exception leaves the library, it never exits, prints or starts threads of its own (the
 * runtime starts `threads` of them).
 * Trust: a plan is native code, so a bundle is to be trusted like a program. Hashes detect accidents; give a
 * `public_key` to refuse a bundle that was not signed by it.
 */
#ifndef EDGEMED_H
#define EDGEMED_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(EDGEMED_BUILDING)
#define EDGEMED_API __attribute__((visibility("default")))
#else
#define EDGEMED_API
#endif

typedef struct edgemed_model edgemed_model; /* an open bundle on a runtime */

/* 0 to 3 are the exit codes of the command line too. */
typedef enum edgemed_status {
    EDGEMED_OK = 0,
    EDGEMED_ERROR_INTERNAL = 1, /* out of memory, a full disk */
    EDGEMED_ERROR_INPUT = 2,    /* an argument or an image is wrong; other images may be fine */
    EDGEMED_ERROR_GATE = 3,     /* answers of the self-test differ, or one is no finite number: do not use the engine */
    EDGEMED_ERROR_BUNDLE = 4,   /* the bundle, a plan, a key or a signature is wrong, damaged or missing */
    EDGEMED_ERROR_RUNTIME = 5   /* no runtime works here, or it failed */
} edgemed_status;

typedef enum edgemed_format {
    EDGEMED_RGB = 0,
    EDGEMED_BGR = 1,
    EDGEMED_RGBA = 2, /* straight alpha, composited over black */
    EDGEMED_GRAY8 = 3
} edgemed_format;

#define EDGEMED_REFER (-1) /* the decision that leaves an image to a human */

typedef struct edgemed_options {
    size_t size;            /* sizeof(edgemed_options), set by edgemed_options_default */
    const char* runtime;    /* "auto": the first of tensorrt, tensorrt-rtx, openvino that works here; or one by name */
    const char* precision;  /* which graph of the bundle: "fp32" or "fp16" (a CPU executes both in fp32) */
    int threads;            /* CPU threads of a request; 0 = all physical cores that the process may use */
    const char* public_key; /* an Ed25519 key file (PEM) by which manifest, plans and certificates must be signed, or NULL */
    const char* plan_key;   /* beside public_key, another one for plans, such as the device's own; NULL = that */
    int uncertified;        /* 1: "auto" may take a plan that is not certified on this very machine */
    int self_test;          /* 1: run the golden images first; fails where answers differ, or none fits a plan */
    const char* modules;    /* folder of the TensorRT modules; NULL = where this library lies */
    void (*warn)(const char* message, void* user); /* gets warnings, such as a runtime that is passed over, or NULL */
    void* user; /* handed to warn; both live as long as the model and its clones, and serve several threads at once */
    const char* plan;       /* one of the bundle's plans, by its id, with "auto" or its own runtime; NULL = the best here */
} edgemed_options;

typedef struct edgemed_image {
    const void* data;      /* the first row's first byte; uint8 */
    int height, width;     /* pixels */
    ptrdiff_t stride;      /* bytes from a row to the next; 0 = packed, negative = bottom-up */
    int format;            /* what a pixel is: an edgemed_format */
} edgemed_image;

typedef struct edgemed_decision {
    int label;           /* the most probable label, the first one at a tie */
    int decision;        /* by the bundle's operating point: a label, or EDGEMED_REFER; without one: label */
    double disagreement; /* of the members, 0 to 1 */
    int set_size;        /* labels in the prediction set; -1 where the bundle states no coverage */
} edgemed_decision;

/* The caller's memory for N answers of K labels by M members. What is NULL is left out. */
typedef struct edgemed_outputs {
    float* probabilities;           /* (N, K) */
    float* member_probabilities;    /* (N, M, K) */
    edgemed_decision* decisions;    /* (N) */
    unsigned char* prediction_sets; /* (N, K): 1 where the label is in the image's prediction set; else 0 */
} edgemed_outputs;

/* The defaults, into the caller's memory of `size` bytes: a program knows the fields of the header it was built with. */
EDGEMED_API void edgemed_options_init(edgemed_options* options, size_t size);
static inline edgemed_options edgemed_options_default(void) {
    edgemed_options options;
    edgemed_options_init(&options, sizeof options);
    return options;
}

/* Opens a bundle and makes its engine ready. options: NULL = the defaults. *model is NULL unless EDGEMED_OK. */
EDGEMED_API edgemed_status edgemed_open(const char* bundle, const edgemed_options* options, edgemed_model** model);

/* A handle on the same engine for another thread. Not while `model` predicts. */
EDGEMED_API edgemed_status edgemed_clone(edgemed_model* model, edgemed_model** clone);

/* Waits for nothing: the handle must not be in use. NULL is ignored. */
EDGEMED_API void edgemed_close(edgemed_model* model);

/* Classifies n images of one size in one request. A new n is compiled on first use (seconds with OpenVINO). */
EDGEMED_API edgemed_status edgemed_predict(edgemed_model* model, const edgemed_image* images, size_t n,
                                           const edgemed_outputs* outputs);

/* Classifies a PNG or JPEG in memory: 8-bit grey or RGB, turned upright by its EXIF data; others are refused. */
EDGEMED_API edgemed_status edgemed_predict_encoded(edgemed_model* model, const void* data, size_t size,
                                                   const edgemed_outputs* outputs);

/* TensorRT only. pixels: device memory, (n, height, width, 3) RGB, packed. All work is put on cuda_stream (a
 * cudaStream_t), which is synchronised at the end; outputs are in host memory. */
EDGEMED_API edgemed_status edgemed_predict_device(edgemed_model* model, const void* pixels, size_t n, int height, int width,
                                                  void* cuda_stream, const edgemed_outputs* outputs);

/* Of a bundle built --with-entropy: bits per 32-pixel patch of what the last request's n images were resized to, (n, E, E)
 * with E = edgemed_entropy_side(model). NULL of another bundle (E is 0), and where the last request failed or held no
 * image. Belongs to the handle, and stays as it is until its next request. */
EDGEMED_API const float* edgemed_entropy(const edgemed_model* model);
EDGEMED_API int edgemed_entropy_side(const edgemed_model* model);

/* What a model is. Of no model (NULL): 0, or NULL. */
EDGEMED_API int edgemed_label_count(const edgemed_model* model);  /* K */
EDGEMED_API int edgemed_member_count(const edgemed_model* model); /* M */
EDGEMED_API const char* edgemed_label(const edgemed_model* model, int index);       /* NULL where there is none */
EDGEMED_API const char* edgemed_member_name(const edgemed_model* model, int index); /* NULL where there is none */
EDGEMED_API const char* edgemed_decision_name(const edgemed_model* model, int decision); /* a label, or "refer" */
EDGEMED_API void edgemed_image_sides(const edgemed_model* model, int* smallest, int* largest); /* of a side, in pixels */
EDGEMED_API const char* edgemed_bundle_id(const edgemed_model* model);
EDGEMED_API const char* edgemed_runtime(const edgemed_model* model);         /* "openvino" */
EDGEMED_API const char* edgemed_runtime_version(const edgemed_model* model); /* the runtime's own */
EDGEMED_API const char* edgemed_reason(const edgemed_model* model);          /* why this runtime, and not the ones before it */
EDGEMED_API const char* edgemed_plan(const edgemed_model* model); /* the id of the plan that runs; NULL: the ONNX file does */
/* What is proven: "certified" on this very machine, "self-tested" where the plan was built, or "built". */
EDGEMED_API const char* edgemed_state(const edgemed_model* model);

/* Why this thread's last call failed; "" before the first failure. Valid until this thread's next failure. */
EDGEMED_API const char* edgemed_last_error(void);

EDGEMED_API const char* edgemed_version(void); /* of this library */

#ifdef __cplusplus
}
#endif

#endif
