/* edgemed-camera-loop BUNDLE [FRAMES]: a loop over camera frames, in C, that allocates nothing once it runs.
 *
 * Put your camera in the place of next_frame: it fills a buffer that belongs to this program (or hand over the camera's
 * own, with its stride). Prints a line per decision that changed, and the mean time of a request at the end: without the
 * first one, which may still compile, and without next_frame(). */
#define _POSIX_C_SOURCE 199309L /* clock_gettime, where the compiler is told -std=c11 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "edgemed.h"

enum { HEIGHT = 480, WIDTH = 640, MAX_LABELS = 64 };

static unsigned char frame[HEIGHT * WIDTH * 3];

static void next_frame(int number) {
    for (int k = 0; k < HEIGHT * WIDTH * 3; ++k) frame[k] = (unsigned char)(k / WIDTH + number);
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

int main(int count, char** arguments) {
    if (count < 2) {
        fprintf(stderr, "usage: edgemed-camera-loop BUNDLE [FRAMES]\n");
        return 2;
    }
    edgemed_model* model = NULL;
    if (edgemed_open(arguments[1], NULL, &model) != EDGEMED_OK) {
        fprintf(stderr, "edgemed: error: %s\n", edgemed_last_error());
        return 2;
    }
    if (edgemed_label_count(model) > MAX_LABELS) {
        fprintf(stderr, "edgemed: error: raise MAX_LABELS to %d\n", edgemed_label_count(model));
        edgemed_close(model);
        return 2;
    }
    const int frames = count > 2 ? atoi(arguments[2]) : 100;
    float probabilities[MAX_LABELS];
    edgemed_decision decision = {0};
    const edgemed_outputs outputs = {.probabilities = probabilities, .decisions = &decision};
    const edgemed_image image = {.data = frame, .height = HEIGHT, .width = WIDTH, .format = EDGEMED_BGR};
    int last = -2, code = 0;
    double busy = 0;
    for (int number = 0; number <= frames && code == 0; ++number) {  /* frame 0 is the one that is not timed */
        next_frame(number);
        const double start = milliseconds();
        const edgemed_status status = edgemed_predict(model, &image, 1, &outputs);
        if (number > 0) busy += milliseconds() - start;
        if (status != EDGEMED_OK) {
            fprintf(stderr, "edgemed: error: %s\n", edgemed_last_error());
            code = 2;
        } else if (decision.decision != last) {
            last = decision.decision;
            printf("frame %d: %s (p = %.3f, disagreement %.3f)\n", number, edgemed_decision_name(model, last),
                   (double)probabilities[decision.label], decision.disagreement);
        }
    }
    if (frames > 0 && code == 0) printf("%.2f ms per frame over %d frames\n", busy / frames, frames);
    edgemed_close(model);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "edgemed: error: the answers cannot be written; is the disk full?\n");
        return 1;
    }
    return code;
}
