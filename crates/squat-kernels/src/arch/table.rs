//! The table of functions of an instruction set, and the macro that compiles it.

use super::functions::kernel_functions;
use super::functions::types::*;

macro_rules! declare_table {
    ({} $($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        /// Plain function pointers, one per line of [`kernel_functions`]. A table is handed out only if the CPU has its
        /// instructions.
        ///
        /// A set that replaces some functions of another takes the rest by `..`: `Table { linear_bits4: f, ..AVX2 }`.
        pub(crate) struct Table {
            $(pub $name: fn($($type),*) $(-> $ret)?,)*
            /// Whether attention takes 8 rows at a time, or 4.
            pub wide_tiles: bool,
        }
    };
}
kernel_functions!(declare_table, {});

/// Compiles every function of [`kernel_functions`] for one instruction set.
///
/// | parameter | meaning |
/// |---|---|
/// | `[...]` | target features; none for the portable table |
/// | `token` | the token type, with a function `new` that needs these features |
/// | `float` | tile of float products: rows of x (`FLOAT_ROWS`), rows of w (`FLOAT_COLUMNS`) |
/// | `int` | tile of integer products: rows (`INT_ROWS`), panels (`INT_PANELS`), steps in flight for a single row |
/// | `wide_tiles` | whether attention may keep many sums in registers (`WIDE_TILES`) |
macro_rules! kernel_table {
    ($(#[$doc:meta])* $vis:vis static $table:ident = [$($features:literal)?], token: $token:ty,
     float: ($fm:literal, $fn:literal), int: ($im:literal, $in:literal, $unroll:literal), wide_tiles: $wide:literal) => {
        mod instances {
            #[allow(unused_imports)]
            use super::*;
            use crate::arch::functions::{kernel_functions, types::*};
            use crate::{attention, float, paired, panels, probe_loops, product, rows};

            const FLOAT_ROWS: usize = $fm;
            const FLOAT_COLUMNS: usize = $fn;
            const INT_ROWS: usize = $im;
            const INT_PANELS: usize = $in;
            const WIDE_TILES: bool = $wide;

            #[inline]
            $(#[target_feature(enable = $features)])?
            fn token() -> $token {
                <$token>::new()
            }

            #[inline]
            $(#[target_feature(enable = $features)])?
            fn kernel() -> product::Vectors<$token, $im, $in, $unroll> {
                product::Vectors(token())
            }

            kernel_functions!(crate::arch::table::define_instances, { [$($features)?] });
        }
        crate::arch::functions::kernel_functions!(crate::arch::table::define_entries, {
            $(#[$doc])* $vis static $table, $wide
        });
    };
}

/// The functions of a set, with its target features.
macro_rules! define_instances {
    ({ $features:tt }
     $($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(crate::arch::table::define_instance! { $features fn $name($($arg: $type),*) $(-> $ret)? = $body })*
    };
}

macro_rules! define_instance {
    ([$($features:literal)?] fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr) => {
        $(#[target_feature(enable = $features)])?
        pub fn $name($($arg: $type),*) $(-> $ret)? {
            $body
        }
    };
}

/// The table of a set's `instances`.
macro_rules! define_entries {
    ({ $(#[$doc:meta])* $table_vis:vis static $table:ident, $wide:literal }
     $($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(#[$doc])*
        // SAFETY (of every entry): the table is reached only through `dispatch`, which hands it out when the CPU has
        // the target features; the functions have no other condition.
        #[allow(unused_unsafe, clippy::undocumented_unsafe_blocks)]
        $table_vis static $table: crate::arch::Table = crate::arch::Table {
            $($name: |$($arg),*| unsafe { instances::$name($($arg),*) },)*
            wide_tiles: $wide,
        };
    };
}

pub(crate) use {define_entries, define_instance, define_instances, kernel_table};
