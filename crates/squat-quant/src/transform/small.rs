//! Symmetric Hadamard matrices whose order is no power of two.
//!
//! | order | construction |
//! |--:|---|
//! | 12, 20, 28 | Paley's second, over the fields of q = 5, 9 and 13 elements: `[[C + I, C - I], [C - I, -C - I]]` with the conference matrix `C = [[0, 1], [1, Q]]` of order q + 1, `Q[i][j]` being 1 where i - j is a square, else -1, and 0 on the diagonal |
//! | 36 | from the Latin square of addition modulo 6: -1 where two places (row, column) differ and share the row, the column or the symbol, else 1 |
//!
//! Products are computed by sums over squares, or over lines of the Latin square, with far fewer additions than the matrix has
//! entries.

/// Order of the largest small matrix.
pub(super) const MAX_SMALL: usize = 36;

/// Values of `N` places side by side; each operation is rounded once.
type Values<const N: usize> = [f32; N];

/// `a + b`.
#[inline(always)]
fn add<const N: usize>(mut a: Values<N>, b: Values<N>) -> Values<N> {
    for i in 0..N {
        a[i] += b[i];
    }
    a
}

/// `a - b`.
#[inline(always)]
fn sub<const N: usize>(mut a: Values<N>, b: Values<N>) -> Values<N> {
    for i in 0..N {
        a[i] -= b[i];
    }
    a
}

/// `6 a`.
#[inline(always)]
fn six<const N: usize>(mut a: Values<N>) -> Values<N> {
    for x in &mut a {
        *x *= 6.0;
    }
    a
}

/// Multiplies 12, 20, 28 or 36 values by the small matrix of that order, which is not normalised, in place. The order of
/// operations is that of the code.
///
/// # Panics
/// When there is no matrix of that order.
#[inline(always)]
pub(super) fn small<const N: usize>(x: &mut [Values<N>]) {
    match x.len() {
        12 => paley(&const { neighbours(5) }, 5, x),
        20 => paley(&const { neighbours(9) }, 9, x),
        28 => paley(&const { neighbours(13) }, 13, x),
        36 => latin(x),
        order => panic!("no small Hadamard matrix of order {order}"),
    }
}

/// Elements of the largest field.
const MAX_FIELD: usize = 13;

/// For each element of a field, elements of it.
type Neighbours = [[u8; MAX_FIELD]; MAX_FIELD];

/// For each element of the field of `q` elements, the elements at a distance that is a square, in the first `(q - 1) / 2`
/// entries. q is a prime, or 9: pairs modulo 3 with the product of complex numbers, where a square is what has norm 1.
const fn neighbours(q: usize) -> Neighbours {
    let mut table = [[0; MAX_FIELD]; MAX_FIELD];
    let mut i = 0;
    while i < q {
        let (mut j, mut count) = (0, 0);
        while j < q {
            let is_square = if q == 9 {
                let (re, im) = ((i % 3 + 3 - j % 3) % 3, (i / 3 + 3 - j / 3) % 3);
                (re * re + im * im) % 3 == 1
            } else {
                let (distance, mut x, mut found) = ((i + q - j) % q, 1, false);
                while x < q {
                    found |= x * x % q == distance;
                    x += 1;
                }
                found
            };
            if is_square {
                table[i][count] = j as u8;
                count += 1;
            }
            j += 1;
        }
        i += 1;
    }
    table
}

/// Product with the conference matrix: `first` and `rest`, which are `q` values, are replaced.
///
/// `Q x = 2 (sum over squares) + x - (sum of all)`.
fn conference<const N: usize>(neighbours: &Neighbours, first: &mut Values<N>, rest: &mut [Values<N>]) {
    let q = rest.len();
    let mut x = [[0f32; N]; MAX_FIELD];
    x[..q].copy_from_slice(rest);
    let mut total = x[0];
    for x in &x[1..q] {
        total = add(total, *x);
    }
    let base = sub(*first, total);
    *first = total;
    for (i, out) in rest.iter_mut().enumerate() {
        let near = &neighbours[i][..(q - 1) / 2];
        let mut sum = x[usize::from(near[0])];
        for &j in &near[1..] {
            sum = add(sum, x[usize::from(j)]);
        }
        *out = add(add(base, x[i]), add(sum, sum));
    }
}

/// Paley's second matrix, of order `2 (q + 1)`: with the halves `u` and `v` of `x`,
/// `(C (u + v) + (u - v), C (u - v) - (u + v))`. One function for all fields, so that the program stays small.
#[inline(never)]
fn paley<const N: usize>(neighbours: &Neighbours, q: usize, x: &mut [Values<N>]) {
    let (low, high) = x.split_at_mut(q + 1);
    let (mut sums, mut differences) = ([[0f32; N]; MAX_FIELD + 1], [[0f32; N]; MAX_FIELD + 1]);
    for i in 0..=q {
        (sums[i], differences[i]) = (add(low[i], high[i]), sub(low[i], high[i]));
        (low[i], high[i]) = (differences[i], sums[i]);
    }
    for values in [&mut sums, &mut differences] {
        let (first, rest) = values.split_at_mut(1);
        conference(neighbours, &mut first[0], &mut rest[..q]);
    }
    for i in 0..=q {
        low[i] = add(sums[i], low[i]);
        high[i] = sub(differences[i], high[i]);
    }
}

/// The matrix of order 36: `6 x + (sum of all) - 2 (sums of the row, the column and the symbol of a place)`.
#[inline(never)]
fn latin<const N: usize>(x: &mut [Values<N>]) {
    let mut rows = [x[0]; 6];
    let mut columns = [x[0]; 6];
    let mut symbols = [x[0]; 6];
    for k in 0..6 {
        let (mut row, mut column, mut symbol) = (x[6 * k], x[k], x[k]);
        for i in 1..6 {
            row = add(row, x[6 * k + i]);
            column = add(column, x[6 * i + k]);
            symbol = add(symbol, x[6 * i + (k + 6 - i) % 6]);
        }
        (rows[k], columns[k], symbols[k]) = (row, add(column, column), add(symbol, symbol));
    }
    let mut total = rows[0];
    for k in 1..6 {
        total = add(total, rows[k]);
    }
    for r in 0..6 {
        let row = sub(total, add(rows[r], rows[r]));
        for c in 0..6 {
            let value = add(six(x[6 * r + c]), row);
            x[6 * r + c] = sub(sub(value, columns[c]), symbols[(r + c) % 6]);
        }
    }
}
