// Runs a wasm32-wasip1 program, such as a test binary: node wasi.mjs PROGRAM ARGS...
import { readFileSync } from 'node:fs';
import { WASI } from 'node:wasi';

const [program, ...args] = process.argv.slice(2);
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => /^(SQUAT|PROPTEST)_/.test(name)));
const wasi = new WASI({ version: 'preview1', args: [program, ...args], env, preopens: {}, returnOnExit: true });
const module = new WebAssembly.Module(readFileSync(program));
const instance = new WebAssembly.Instance(module, { wasi_snapshot_preview1: wasi.wasiImport });
process.exit(wasi.start(instance));
