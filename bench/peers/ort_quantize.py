# onnxruntime's own 4-bit quantizer on a model with external data, as its documentation has it: python ort_quantize.py MODEL OUT
# Prints one line of JSON: seconds of the call (loading, quantizing, saving), peak resident bytes, bytes written, versions. Debian has the packages
# python3-onnxruntime and python3-onnx from forky on.
import json, os, resource, sys, time

import onnx
import onnxruntime
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

model, out = sys.argv[1:3]
start = time.perf_counter()
quantizer = MatMulNBitsQuantizer(onnx.load(model), algo_config=DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4))
quantizer.process()
quantizer.model.save_model_to_file(out, use_external_data_format=True)
seconds = time.perf_counter() - start
size = sum(os.path.getsize(path) for path in (out, out + ".data") if os.path.exists(path))
peak = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": seconds, "cpu": peak.ru_utime + peak.ru_stime, "peak": peak.ru_maxrss * 1024, "bytes": size, "version": f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"}))
