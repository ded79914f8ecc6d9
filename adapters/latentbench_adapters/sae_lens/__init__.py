"""sae-lens: its SAEs as sources, its architectures and losses as variants, its format for exports.

source     `load: {adapter: sae_lens}`: SAEs of its registry and those that it saved
options    the variants that are trained through its classes
saes       its SAEs behind the harness's interface
format     its format as a plug-in, which `plan` asks without torch
export     native SAEs in that format
classes    classes of ours for sae-lens, for SAEs that none of its own can stand for"""
