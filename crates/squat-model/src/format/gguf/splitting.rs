//! How texts are split before byte-level BPE, by the names in `tokenizer.ggml.pre`. Patterns are those of the models' own
//! `tokenizer.json`, and where llama.cpp 0.3.36 (as in llama-cpp-python) has another form of the same, that one. Each
//! pattern splits what the ones before it have left.

use serde_json::{Value, json};

use crate::tokenizer_json::Steps;

/// GPT-2: contractions, and words, numbers and other signs with a space in front.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3: contractions in any case, words with one leading sign, up to three digits, signs with line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with combining marks in words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's with numbers of any length.
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o: words end before a capital.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: the same without contractions, single digits.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Cased letters, as DeepSeek's own file lists them.
const DEEPSEEK_WORDS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// A way to split texts.
struct Splitting {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// Whether a word that is a token stays whole, whatever the merges.
    ignore_merges: bool,
    /// Whether texts are composed first (NFC).
    nfc: bool,
}

const SPLITTINGS: [Splitting; 13] = [
    plain(
        &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "modern-bert"],
        &[GPT2],
    ),
    plain(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        &[r"\p{N}", GPT2],
    ),
    // As llama.cpp splits where a file says nothing.
    plain(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    plain(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Splitting {
        ignore_merges: true,
        ..plain(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"], &[LLAMA3])
    },
    plain(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    Splitting { nfc: true, ..plain(&["qwen2", "deepseek-r1-qwen", "megrez"], &[QWEN2]) },
    // Its ids in the source package are those of texts that are not composed.
    plain(&["qwen35"], &[QWEN35]),
    plain(&["minicpm5"], &[r"\p{N}{1,3}", MINICPM5]),
    plain(&["gpt-4o", "llama4"], &[GPT4O]),
    Splitting { ignore_merges: true, ..plain(&["tekken"], &[TEKKEN]) },
    plain(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            DEEPSEEK_WORDS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        ],
    ),
    plain(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
];

const fn plain(names: &'static [&'static str], patterns: &'static [&'static str]) -> Splitting {
    Splitting { names, patterns, ignore_merges: false, nfc: false }
}

/// What a `tokenizer.json` needs for the splitting of a name, and whether a word that is a token stays whole.
///
/// # Errors
/// A name that is not known.
pub(super) fn byte_level(name: &str) -> Result<(Steps, bool), String> {
    let found = SPLITTINGS.iter().find(|splitting| splitting.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = SPLITTINGS.iter().flat_map(|splitting| splitting.names).copied().collect();
        format!("unsupported pre-tokenizer \"{name}\" (supported: {})", known.join(", "))
    })?;
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let splits = found.patterns.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let steps = Steps {
        normalizer: if found.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": splits.chain([bytes(false)]).collect::<Vec<_>>()}),
        post_processor: bytes(true),
        decoder: bytes(true),
    };
    Ok((steps, found.ignore_merges))
}
