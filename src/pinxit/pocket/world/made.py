"""The made things of pocket's world, each drawn facing right in a frame of -1..1."""

from __future__ import annotations

from pinxit.pocket.world import shapes as s
from pinxit.pocket.world.attributes import EMBLEMS, Subject
from pinxit.pocket.world.canvas import Canvas, Colour, against, shifted
from pinxit.pocket.world.living import DARK, Keypoints, sign

GLASS: Colour = (0.72, 0.88, 0.96)
STEEL: Colour = (0.62, 0.64, 0.68)
WOOD: Colour = (0.55, 0.36, 0.20)


def car(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """In profile: cabin, bonnet, two wheels, a lamp in front."""
    u, v = c.u, c.v
    roof = 0.36 + 0.18 * (1 - who.slim)
    wheel = 0.17 + 0.07 * who.legs
    back = -0.44 - 0.24 * who.tail
    cabin = [(back, 0.02), (back + 0.12, roof), (0.20 + 0.14 * who.head, roof), (0.50, 0.02)]
    c.paint(s.polygon(u, v, cabin, 0.05), colour, body=True)
    glass = [(back + 0.12, 0.05), (back + 0.2, roof - 0.06), (0.16, roof - 0.06), (0.36, 0.05)]
    c.paint(s.polygon(u, v, glass, 0.01), GLASS)
    c.paint(s.box(u, v, (-0.08, (roof + 0.02) / 2), (0.035, roof / 2)), colour, line=0)
    c.paint(s.box(u, v, (0.0, -0.18), (0.86, 0.24), 0.14), colour, body=True)
    c.paint(s.box(u, v, (0.0, -0.36), (0.86, 0.05 + 0.05 * who.spread), 0.05), who.mark)
    c.ellipse((0.80, -0.12), (0.07, 0.09), (1.0, 0.93, 0.55))
    sign(c, who, (-0.06, -0.14), 0.15)
    for x in (-0.48, 0.48):
        c.ellipse((x, -0.46), (wheel + 0.04, wheel + 0.04), DARK)
        c.ellipse((x, -0.46), (wheel * 0.5, wheel * 0.5), STEEL)
    return (0.86, -0.15), (-0.86, -0.15), (-0.1, roof), (0.0, -0.46 - wheel)


def mug(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """A straight cup, its handle to the right, a band and an emblem."""
    u, v = c.u, c.v
    half = 0.36 + 0.14 * (1 - who.slim)
    high = 0.52 + 0.14 * who.head
    grip = 0.18 + 0.12 * who.tail
    handle = s.ring(u, v, (half + 0.02, -0.08), (grip + 0.10, 0.22 + 0.1 * who.legs), 0.13)
    c.paint(handle, who.mark)
    c.paint(s.box(u, v, (-0.06, -0.10), (half, high), 0.12), colour, body=True)
    band = s.box(u, v, (-0.06, -0.10 - high * 0.72), (half, 0.06 + 0.07 * who.spread), 0.03)
    c.paint(band, who.mark)
    c.paint(s.ellipse(u, v, (-0.06, high - 0.12), (half, 0.13)), shifted(colour, 0.35))
    c.ellipse((-0.06, high - 0.14), (half * 0.8, 0.085), (0.33, 0.19, 0.10))
    sign(c, who, (-0.06, -0.08), 0.20)
    return (half + grip, -0.08), (-half, -0.1), (-0.06, high), (-0.06, -0.1 - high)


def house(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Walls, a gable roof, a chimney on the left, door and window."""
    u, v = c.u, c.v
    half = 0.52 + 0.14 * (1 - who.slim)
    eaves = 0.06 + 0.14 * who.legs
    ridge = eaves + 0.42 + 0.24 * who.head
    chimney = s.box(u, v, (-0.34, eaves + 0.36), (0.09, 0.26 + 0.16 * who.tail))
    c.paint(chimney, (0.62, 0.30, 0.24))
    c.paint(s.box(u, v, (0.0, (eaves - 0.80) / 2), (half, (eaves + 0.80) / 2)), colour, body=True)
    roof = [(-half - 0.16, eaves - 0.02), (half + 0.16, eaves - 0.02), (0.0, ridge)]
    c.paint(s.polygon(u, v, roof, 0.03), who.mark)
    door = s.box(u, v, (0.28, -0.56), (0.13, 0.25), 0.04)
    c.paint(door, against(colour, 0.6))
    pane = 0.12 + 0.06 * who.spread
    c.paint(s.box(u, v, (-0.26, -0.28), (pane + 0.04, pane + 0.04), 0.02), (0.97, 0.97, 0.95))
    c.paint(s.box(u, v, (-0.26, -0.28), (pane, pane)), GLASS)
    badge = s.emblem(u, v, (0.0, eaves + 0.18), 0.16, EMBLEMS[who.emblem])
    c.paint(badge, shifted(colour, 0.1))
    return (half + 0.16, eaves), (-half - 0.16, eaves), (0.0, ridge), (0.0, -0.8)


def boat(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """A hull with mast and two sails; the jib looks forward."""
    u, v = c.u, c.v
    deep = -0.62 - 0.16 * who.legs
    top = 0.62 + 0.26 * who.head
    half = 0.66 + 0.18 * (1 - who.slim)
    c.paint(s.limb(u, v, (0.02, -0.3), (0.02, top + 0.04), 0.035, 0.03), WOOD)
    main = [(-0.04, top), (-0.04, -0.12), (-0.36 - 0.34 * who.tail, -0.12)]
    c.paint(s.polygon(u, v, main, 0.02), (0.98, 0.96, 0.90))
    jib = [(0.10, top - 0.10), (0.10, -0.10), (0.40 + 0.22 * who.spread, -0.10)]
    c.paint(s.polygon(u, v, jib, 0.02), who.mark)
    hull = [(-half, -0.22), (half + 0.1, -0.22), (half - 0.24, deep), (-half + 0.18, deep)]
    c.paint(s.polygon(u, v, hull, 0.04), colour, body=True)
    rail = s.box(u, v, (0.04, -0.22), (half + 0.06, 0.05), 0.03)
    c.paint(rail, against(colour, 0.4))
    sign(c, who, (-0.02, -0.46), 0.15)
    return (half + 0.1, -0.22), (-half, -0.22), (0.02, top), (0.0, deep)


def robot(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """Square head and trunk, an antenna, the right arm raised."""
    u, v = c.u, c.v
    half = 0.30 + 0.10 * (1 - who.slim)
    head = 0.22 + 0.07 * who.head
    leg = -0.70 - 0.16 * who.legs
    aerial = 0.66 + head * 0.5 + 0.16 * who.tail
    c.paint(s.limb(u, v, (0.0, 0.5), (0.0, aerial), 0.03, 0.03), STEEL)
    c.ellipse((0.0, aerial), (0.075, 0.075), who.mark)
    for x in (-0.17, 0.17):
        c.paint(s.limb(u, v, (x, -0.40), (x, leg), 0.085, 0.085), STEEL)
        c.paint(s.box(u, v, (x + 0.04, leg - 0.04), (0.15, 0.07), 0.04), who.mark)
    c.paint(s.limb(u, v, (half, -0.02), (half + 0.26, 0.30), 0.075, 0.07), STEEL)
    c.ellipse((half + 0.29, 0.36), (0.11, 0.11), who.mark)
    c.paint(s.limb(u, v, (-half, -0.02), (-half - 0.16, -0.36), 0.075, 0.07), STEEL)
    c.ellipse((-half - 0.17, -0.42), (0.11, 0.11), who.mark)
    c.paint(s.box(u, v, (0.0, -0.16), (half + 0.02, 0.34), 0.06), colour, body=True)
    c.paint(s.box(u, v, (0.0, 0.42), (head * 1.35, head), 0.06), colour, body=True)
    for x in (-0.11, 0.15):
        c.eye((x, 0.46), 0.085)
    mouth = s.box(u, v, (0.04, 0.42 - head * 0.55), (0.10 + 0.08 * who.spread, 0.03), 0.02)
    c.paint(mouth, DARK, line=0)
    sign(c, who, (0.0, -0.16), 0.18)
    return (half + 0.3, 0.36), (-half - 0.2, -0.4), (0.0, aerial), (0.0, leg)


def teapot(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """A round belly, the spout to the right, handle behind, lid with a knob."""
    u, v = c.u, c.v
    wide = 0.50 + 0.08 * (1 - who.slim)
    high = 0.40 + 0.10 * who.slim
    tip = 0.10 + 0.26 * who.tail
    grip = s.ring(u, v, (-wide + 0.02, -0.12), (0.22 + 0.08 * who.legs, 0.26), 0.11)
    c.paint(grip, who.mark)
    spout = s.limb(u, v, (wide - 0.18, -0.26), (0.84, tip), 0.17, 0.075)
    c.paint(spout, colour, body=True)
    belly = s.ellipse(u, v, (-0.04, -0.18), (wide, high))
    c.paint(belly, colour, body=True)
    c.paint(s.box(u, v, (-0.04, -0.18 - high + 0.02), (wide * 0.55, 0.06), 0.04), who.mark)
    lid = s.ellipse(u, v, (-0.04, high - 0.26), (0.22 + 0.14 * who.spread, 0.20))
    c.paint(s.common(lid, high - 0.26 - v), who.mark)
    knob = 0.075 + 0.05 * who.head
    c.ellipse((-0.04, high + knob - 0.08), (knob, knob), who.mark)
    sign(c, who, (-0.06, -0.18), 0.19)
    return (0.84, tip), (-wide - 0.2, -0.12), (-0.04, high + 2 * knob - 0.08), (-0.04, -0.18 - high)


def backpack(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """A rounded bag: loop on top, strap behind, front pocket, a bottle at its right."""
    u, v = c.u, c.v
    half = 0.42 + 0.12 * (1 - who.slim)
    top = 0.44 + 0.16 * who.head
    strap = 0.16 + 0.14 * who.tail
    pocket = 0.20 + 0.10 * who.legs
    c.paint(s.ring(u, v, (-half, -0.14), (strap + 0.04, 0.46), 0.11), shifted(who.mark, -0.2))
    c.paint(s.ring(u, v, (-0.02, top + 0.02), (0.17, 0.20), 0.09), who.mark)
    x, neck = half + 0.12, 0.02 + 0.16 * who.spread
    c.paint(s.box(u, v, (x, (neck - 0.68) / 2), (0.13, (neck + 0.68) / 2), 0.07), GLASS)
    c.paint(s.box(u, v, (x, neck + 0.05), (0.08, 0.08), 0.03), DARK)
    sack = s.box(u, v, (-0.02, (top - 0.80) / 2), (half, (top + 0.80) / 2), 0.34)
    floor = s.box(u, v, (-0.02, -0.54), (half, 0.26), 0.14)
    c.paint(s.together(sack, floor), colour, body=True)
    c.paint(s.box(u, v, (x, -0.54), (0.17, 0.18), 0.06), against(colour, 0.3))
    zip_ = s.ring(u, v, (-0.02, 0.02), (half * 0.78, top - 0.12), 0.045)
    c.paint(s.common(zip_, 0.02 - v), against(colour, 0.6), line=0)
    front = s.box(u, v, (-0.02, -0.70 + pocket), (half * 0.76, pocket), 0.12)
    c.paint(front, who.mark)
    seam = s.box(u, v, (-0.02, -0.80 + 2 * pocket), (half * 0.60, 0.025))
    c.paint(seam, against(who.mark, 0.6), line=0)
    c.paint(s.box(u, v, (half * 0.45, -0.86 + 2 * pocket), (0.035, 0.08), 0.02), STEEL)
    sign(c, who, (-0.02, 0.16), 0.15)
    return (x + 0.16, -0.54), (-half - strap, -0.14), (-0.02, top + 0.26), (0.0, -0.8)


def clock(c: Canvas, who: Subject, colour: Colour) -> Keypoints:
    """An alarm clock: round face, two bells, feet, its key and hands to the right."""
    u, v = c.u, c.v
    wide = 0.52 + 0.10 * (1 - who.slim)
    bell = 0.20 + 0.07 * who.head
    key = 0.16 + 0.10 * who.tail
    foot = -0.68 - 0.12 * who.legs
    dial = 0.76 - 0.12 * who.spread
    for side in (-1, 1):
        start, end = (side * 0.28, -0.45), (side * 0.46, foot)
        c.paint(s.limb(u, v, start, end, 0.10, 0.075), who.mark)
        place = (side * 0.36, 0.52)
        c.paint(s.limb(u, v, (side * 0.24, 0.36), place, 0.05, 0.05), STEEL)
        dome = s.ellipse(u, v, place, (bell * 1.15, bell * 1.05))
        c.paint(s.common(dome, 0.40 - v + 0.45 * side * (place[0] - u) + 0.1), who.mark)
    c.paint(s.limb(u, v, (0.0, 0.40), (0.0, 0.72), 0.035, 0.035), STEEL)
    c.ellipse((0.0, 0.74), (0.09, 0.06), STEEL)
    c.paint(s.limb(u, v, (wide - 0.1, -0.06), (wide + 0.1, -0.06), 0.05, 0.05), STEEL)
    c.paint(s.ring(u, v, (wide + key, -0.06), (0.12, 0.17), 0.09), who.mark)
    c.paint(s.ellipse(u, v, (0.0, -0.06), (wide, 0.56)), colour, body=True)
    c.ellipse((0.0, -0.06), (wide * dial, 0.56 * dial), (0.98, 0.97, 0.92))
    for x, y in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        centre = (x * wide * dial * 0.84, -0.06 + y * 0.56 * dial * 0.84)
        c.paint(s.ellipse(u, v, centre, (0.035, 0.035)), DARK, line=0)
    sign(c, who, (-0.12, -0.22), 0.13)
    c.paint(s.limb(u, v, (0.0, -0.04), (0.15, 0.22), 0.04, 0.03), DARK, line=0)
    c.paint(s.limb(u, v, (0.0, -0.04), (0.27, -0.10), 0.045, 0.04), DARK, line=0)
    c.ellipse((0.0, -0.04), (0.06, 0.06), DARK)
    return (wide + key + 0.12, -0.06), (-wide, -0.06), (0.0, 0.8), (0.0, foot - 0.08)
