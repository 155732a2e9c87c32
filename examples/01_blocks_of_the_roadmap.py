"""Print the three rows of a block at every step of the roadmap from ResNet-50 to ConvNeXt.

python examples/01_blocks_of_the_roadmap.py
"""

import convnext

for rung in convnext.roadmap("resnet50"):
    config = rung.config
    print(f"\n{rung.name}: {rung.what}")
    for row in convnext.block_rows(config, in_dim=config.stage_dims[1], dim=config.dims[1]):
        kernel = f"{row.kernel_size}x{row.kernel_size}" + (" depthwise" if row.groups > 1 else "")
        norm = {"batch": "BN", "layer": "LN"}[config.norm] if row.norm else ""
        act = config.act.upper() if row.act else ""
        widths = f"{row.in_dim:>5} -> {row.out_dim:<5}"
        print(f"  {row.name:<8} {widths} {kernel:<14} {norm:<3} {act}".rstrip())
