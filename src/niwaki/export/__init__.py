"""Write the artifact that ships, and check it against the model before saying done.

The integers in the saved model are the integers in the artifact: a layer's weight is stored as it is, and the file is
read back and compared, weight by weight and logit by logit. Every artifact takes `input_ids`, `attention_mask` and,
where the task has pairs, `token_type_ids`, int64 (B, T) with both free, and gives `logits`, float32 (B, C). A model
with exits becomes a chain of such files, one a segment.
"""

from __future__ import annotations

from niwaki.export.artifact import export_onnx, export_openvino, file_for
from niwaki.export.dense_file import export_safetensors
from niwaki.export.parity import Parity

__all__ = ["Parity", "export_onnx", "export_openvino", "export_safetensors", "file_for"]
