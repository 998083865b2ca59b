#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    squat_fuzz::Target::named("sentencepiece").run(bytes);
});
