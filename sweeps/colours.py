"""The colours of all figures."""

# Okabe and Ito's colours, for any kind of colour vision; without their yellow, too pale for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4E16")
INK, PALE = "#333333", "#DDDDDD"
