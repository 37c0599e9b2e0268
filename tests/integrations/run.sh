#!/bin/sh
# Tries the adapters against the real packages: each library in an environment of its own, which reads what it lacks
# from the project's .venv (torch, transformers, pytest). Needs the network, once. Where a library is installed without
# all of its dependencies, pip lists them as an ERROR and goes on.
#
#   tests/integrations/run.sh                  # all of them
#   tests/integrations/run.sh its_hub verl     # some
#   SEARCH_AND_LEARN=CHECKOUT tests/integrations/run.sh search_and_learn    # it is on no registry
#
# ENVIRONMENTS is the folder of the environments (build/integrations).
set -eu
cd "$(dirname "$0")/../.."
python=$PWD/.venv/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
environments=${ENVIRONMENTS:-build/integrations}
export PYTHONPATH="$PWD/src${SEARCH_AND_LEARN:+:$SEARCH_AND_LEARN/src}"
failed=

# install NAME PIP_ARGUMENTS...: into the environment of that name
install() {
    environment=$environments/$1
    shift
    if [ ! -e "$environment/installed" ]; then
        [ -d "$environment" ] || "$python" -m venv "$environment"
        own=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$site" > "$own/project.pth"
        "$environment/bin/pip" install --quiet --disable-pip-version-check "$@"
    fi
}

[ $# -gt 0 ] || set -- its_hub inspect_ai lm_eval verl openrlhf reward_hub verifiers trl ray ${SEARCH_AND_LEARN:+search_and_learn}
for name in "$@"; do
    run=$environments/$name/bin/python
    case $name in
        its_hub) install its_hub 'its_hub[lm]==1.2.0' ;;
        inspect_ai) install inspect_ai inspect_ai==0.3.285 ;;
        lm_eval) install lm_eval lm_eval==0.4.13 ;;
        # Its transformers (below 5.11) is older than the project's; what its reward workers import is enough.
        verl)
            install verl --no-deps verl==0.9.1 'tensordict>=0.8,<=0.10.0,!=0.9.0' codetiming hydra-core omegaconf \
                antlr4-python3-runtime==4.9.3 pylatexenc torchdata cachetools pyvers cloudpickle orjson
            install verl ray aiohttp ;;
        # It pins flash-attn, deepspeed and transformers; what its executor of rollouts imports is enough.
        openrlhf)
            install openrlhf --no-deps openrlhf==0.11.2
            install openrlhf pylatexenc aiohttp ;;
        # Its litellm, below 1.75, is of other parts.
        reward_hub) install reward_hub --no-deps reward_hub==0.1.10 tenacity python-dotenv ;;
        # Its openai is below 3; the environment has its own.
        verifiers) install verifiers verifiers==0.4.0 ;;
        ray) install ray ray==2.60.0 ;; # rprm judge --ray, on clusters of several nodes here
        trl) run=$python ;; # the project's own
        search_and_learn)
            [ -n "${SEARCH_AND_LEARN:-}" ] || { echo "set SEARCH_AND_LEARN to a checkout of search-and-learn" >&2; exit 2; }
            install search_and_learn word2number ;;
        *) echo "no such library: $name" >&2; exit 2 ;;
    esac
    [ "$run" = "$python" ] || touch "$environments/$name/installed"
    echo "== $name"
    "$run" -m pytest -q -o filterwarnings=default --disable-warnings -p no:cacheprovider \
        "tests/integrations/test_$name.py" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
