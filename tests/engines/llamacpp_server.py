"""A llama.cpp server on a free loopback port: `python llamacpp_server.py MODEL.gguf`.

Prints its URL when it is ready and ends when its standard input does, so that it never outlives the tests.
"""

import os
import sys

import xllamacpp

NUM_SLOTS, CONTEXT = 4, 4096


def main(model: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = NUM_SLOTS
    params.n_ctx = NUM_SLOTS * CONTEXT
    # A second thread waits for the first in a busy loop: beside any other load it makes everything slower.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 4 * NUM_SLOTS
    params.port = 0
    params.ui = False
    params.warmup = False
    params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
