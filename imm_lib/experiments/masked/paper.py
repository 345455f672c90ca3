"""What the paper prints about fine-tuning BERT base on GLUE: Table 2, means of restarts and their ±, per cent."""

TABLE_2 = {
    "CoLA": {"base": ("52.1", "4.0"), "+MLM": ("55.0", "3.0"), "+MLM+IMM": ("60.0", "1.0")},
    "MRPC": {"base": ("88.9", "2.0"), "+MLM": ("89", "1.0"), "+MLM+IMM": ("90", "1.0")},
    "QNLI": {"base": ("90.5", "2.0"), "+MLM": ("91.0", "2.0"), "+MLM+IMM": ("93.5", "1.0")},
    "RTE": {"base": ("66", "3.0"), "+MLM": ("68", "2.0"), "+MLM+IMM": ("71", "1.0")},
}
"""By task and arm; Matthews' correlation for CoLA, F1 for MRPC, accuracy otherwise."""
