# Shared by the scripts of the synthetic tasks, which source it. From the environment:
#   ELAPID    the binary [cargo run --release --]
#   DEVICE    cpu, cuda, cuda:1 ... [auto]
#   PARALLEL  1: train all models of a page at once, each with its output in DIR.log [one after another]
cd "$(dirname "${BASH_SOURCE[0]}")/.."

elapid() {
    if [[ -n ${ELAPID:-} ]]; then "$ELAPID" --device "${DEVICE:-auto}" "$@"
    else cargo run --release -- --device "${DEVICE:-auto}" "$@"; fi
}

# train DIR ARGUMENT...: trains a model, or resumes the run in DIR.
models=() jobs=()
train() {
    local dir=$1 resume=()
    shift
    compgen -G "$dir/resume/step-*" >/dev/null && resume=(--resume)
    models+=(--model "$dir")
    if [[ ${PARALLEL:-} != 1 ]]; then
        elapid train --output "$dir" ${resume[@]+"${resume[@]}"} "$@"
        return
    fi
    mkdir -p "$(dirname "$dir")"
    elapid train --output "$dir" ${resume[@]+"${resume[@]}"} "$@" >>"$dir.log" 2>&1 &
    jobs+=($!)
}

# report FILE ARGUMENT...: writes the page of all models once they are trained. Evaluates in f32, as in training.
report() {
    local page=$1 job
    shift
    for job in ${jobs[@]+"${jobs[@]}"}; do wait "$job"; done
    elapid --dtype f32 eval "${models[@]}" --report "$page" "$@"
}
