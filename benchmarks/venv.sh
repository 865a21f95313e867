# Sourced by the scripts that promise to work on a fresh machine: makes .venv with everything in it and activates it.
# Set SEGGYM_VENV to use another folder; `constraints` and `extras` make another set-up.
venv="${SEGGYM_VENV:-.venv}"
constraints="${constraints:-constraints.txt}"
if ! [ "$venv/installed" -nt pyproject.toml ] || ! [ "$venv/installed" -nt "$constraints" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --upgrade "pip>=23.1"
    "$venv/bin/pip" install --quiet --constraint "$constraints" torch
    "$venv/bin/pip" install --quiet --constraint "$constraints" --editable ".[${extras:-dev}]"
    touch "$venv/installed"
fi
. "$venv/bin/activate"
# More threads than cores make everything several times slower, and several small networks run side by side here.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
