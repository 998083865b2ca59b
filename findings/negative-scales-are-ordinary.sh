#!/bin/bash
# Guess:   scales of quantized weights are positive: absmax / 7 for symmetric 4 bits, (max - min) / 15 with the minimum as bias for
#          affine ones.
# Reality: two of the most used writers store negative scales for about half of all groups. MLX's affine quantization makes
#          the end of larger magnitude the bias (the maximum as often as the minimum), with a scale that points the other
#          way, and stretches the scale so that 0 is a code exactly. onnxruntime's symmetric 4-bit blocks divide the signed
#          value of largest magnitude by -8 and store no zero point, the code 8 being 0. A reader that refuses or drops
#          the sign of such scales breaks valid files. MLX's 3-bit codes lie dense: they cross the ends of 32-bit words.
# Seen with: mlx 0.32.4 (its CPU build), onnxruntime 1.32.0, onnx 1.23.2, onnx_ir 1.1.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check "mlx[cpu]==0.32.4" onnxruntime==1.32.0 onnx==1.23.2 onnx_ir==1.1.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, sys, mlx.core as mx, numpy as np
from onnx import TensorProto, helper as h, numpy_helper as nh
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
mx.set_default_device(mx.cpu)
print({name: im.version(name) for name in ("mlx", "onnxruntime", "onnx", "onnx_ir")})
facts = {}
w = (np.random.default_rng(0).standard_normal((64, 64)) * 0.1).astype(np.float32)
words, scales, biases = (np.array(x) for x in mx.quantize(mx.array(w), group_size=64, bits=4))
largest = np.where(abs(w.max(1)) > abs(w.min(1)), w.max(1), w.min(1))
print("MLX: negative scales", int((scales < 0).sum()), "of", scales.size)
facts["MLX: 16 to 48 of 64 scales are negative"] = 16 <= (scales < 0).sum() <= 48
facts["MLX: negative where the maximum is the larger end"] = bool(((scales[:, 0] < 0) == (largest > 0)).all())
facts["MLX: the bias is that end to a part in ten, not the minimum"] = bool((abs(biases[:, 0] / largest - 1) < 0.1).all() and not np.allclose(biases[:, 0], w.min(1), atol=1e-3))
facts["MLX: zero is a code exactly"] = bool((abs(np.round(-biases / scales) * scales + biases) < 1e-6).all())
ramp = (np.arange(64) % 8 - 3).astype(np.float32)[None]
words, scales, biases = (np.array(x) for x in mx.quantize(mx.array(ramp), group_size=64, bits=3))
stream = sum(int(word) << 32 * i for i, word in enumerate(words[0]))
codes = np.array([stream >> 3 * i & 7 for i in range(64)])
facts["MLX: 64 codes of 3 bits in 6 words, one stream"] = words.shape == (1, 6) and bool((codes * scales[0] + biases[0] == ramp[0]).all())
graph = h.make_graph([h.make_node("MatMul", ["x", "w"], ["y"])], "g", [h.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
                     [h.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])], [nh.from_array(w, "w")])
quantizer = MatMulNBitsQuantizer(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), block_size=32, is_symmetric=True)
quantizer.process()
stored = {i.name: nh.to_array(i) for i in quantizer.model.model.graph.initializer}
scales = next(v for k, v in stored.items() if "scale" in k).reshape(64, 2)
blocks = w.T.reshape(64, 2, 32)
signed = np.take_along_axis(blocks, abs(blocks).argmax(2)[..., None], 2)[..., 0]
print("onnxruntime: negative scales", int((scales < 0).sum()), "of", scales.size, "initializers:", sorted(stored))
facts["onnxruntime: scale = value of largest magnitude / -8"] = bool(np.allclose(scales, signed / -8, rtol=1e-6))
facts["onnxruntime: no zero points"] = not any("zero" in k for k in stored)
for k, v in facts.items(): print(f"{k:60} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py 2> >(grep -v INFO >&2)
